"""Writes the log of `configs/planted_ids_deepfm.yaml` into a folder and prints its best AUC."""

from __future__ import annotations

import argparse
from pathlib import Path

from recsys.data.planted_ids import write_id_log

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    log = write_id_log(parser.parse_args().out / "planted_ids")
    print(f"{log.train.parent}: best possible test AUC {log.bayes_auc:.5f}")
