"""What each selection method finds of a planted truth: the ids and the field that say nothing.

    python -m benchmarks.recovery [--rows 400000] [--methods optfs,magnitude] [--seeds 3]

DeepFM on a small log of `recsys.data.planted_ids`: half of the ids of every field, and all of
`noise`, add nothing to the logit. Methods that are told how much to keep are told half of the
weights. Judged are the vectors in the packed bundle of all ids that training has met, first-order
weights aside. What an id keeps is the share of its numbers that are not zero; under `autodim`,
which gives whole fields a width, the rank of its field's vectors.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import train
from recsys.build import embedding_layers
from recsys.bundle.rebuild import Rebuilt, rebuild
from recsys.config import parse_config
from recsys.data.planted_ids import COLUMNS, USELESS, IdLog, write_id_log
from recsys.data.synthetic import mid_rank_auc
from serving.bundle import open_bundle

KEEP = 0.5
SHRINK = 500
METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "magnitude": {"keep": KEEP},
    "optfs": {"strength": 0.1},
    "optembed": {"keep": KEEP},
    "dnis": {"keep": KEEP},
    "pep": {"keep": KEEP},
    "deeplight": {"keep": KEEP},
    "dsl": {"keep": KEEP},
    "autodim": {},
}


def main() -> None:
    """Prints one line per method: means over the seeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", default=",".join(METHODS), help="by comma")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        log = write_id_log(out / "log", rows=args.rows, eval_rows=args.rows // 4, shrink=SHRINK)
        print(f"best possible test AUC {log.bayes_auc:.4f}\n")
        print("| method | test AUC | table bytes | useful | useless | noise | told apart | s |")
        print("|---|---|---|---|---|---|---|---|")
        for name in args.methods.split(","):
            runs = [_run(name, 2021 + seed, log, out) for seed in range(args.seeds)]
            auc, size, useful, useless, noise, apart, seconds = np.mean(runs, axis=0)
            print(
                f"| {name} | {auc:.4f} | {size:,.0f} | {useful:.0%} | {useless:.0%} | {noise:.0%} "
                f"| {apart:.3f} | {seconds:.0f} |",
                flush=True,
            )


def _run(name: str, seed: int, log: IdLog, out: Path) -> tuple[float, ...]:
    """Test AUC, bytes, kept shares of useful and useless ids and of the field without a meaning,
    the chance that a useful id keeps more than a useless one, seconds."""
    selection = METHODS[name]
    tree: dict[str, Any] = {
        "name": f"recovery-{name}",
        "seed": seed,
        "data": {
            "train": str(log.train),
            "valid": str(log.valid),
            "test": str(log.test),
            "label": "label",
        },
        "features": {column: {"type": "categorical"} for column in COLUMNS},
        "embedding": {"method": "full", "embedding_dim": 8},
        "model": {"name": "deepfm", "hidden_units": [64, 32]},
        "train": {
            "batch_size": 2_000,
            "max_epochs": 15,
            "patience": 2,
            "embedding_l2": {"value": 1e-3, "mode": "all_rows"},
        },
        "tracking": {"uri": None},
    }
    if selection is not None:
        tree["selection"] = {"method": name, **selection}
    result = train.run(parse_config(tree), out=out / "runs", cache=out / "cache")
    found = rebuild(open_bundle(result["bundle"]))
    kept, useful, meaningless = _kept(found, log, by_field=name == "autodim")
    yes, no = useful.astype(float), (~useful).astype(float)
    return (
        result["metrics"]["test"]["auc"],
        result["memory"]["stored_bytes"],
        kept[useful].mean(),
        kept[~useful].mean(),
        kept[meaningless].mean(),
        mid_rank_auc(kept, yes, no),
        result["seconds"],
    )


def _kept(
    found: Rebuilt, log: IdLog, *, by_field: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every id that training has met: the share that it keeps, whether it says something, and
    whether it is one of the field that does not."""
    layer = max(embedding_layers(found.graph.model), key=lambda layer: layer.dim)
    kept, useful, meaningless = [], [], []
    for place, field in enumerate(found.features.fields):
        raw = found.features.states[field.name]["ids"]
        with torch.no_grad():
            vectors = layer.all_vectors(place)[-len(raw) :]  # the others are null and unseen
        kept.append(_rank(vectors) if by_field else (vectors != 0).float().mean(1).numpy())
        useful.append(log.useful[field.name][raw])
        meaningless.append(np.full(len(raw), field.name == USELESS))
    return np.concatenate(kept), np.concatenate(useful), np.concatenate(meaningless)


def _rank(vectors: Tensor) -> np.ndarray:
    share = int(torch.linalg.matrix_rank(vectors)) / vectors.size(1)
    return np.full(len(vectors), share)


if __name__ == "__main__":
    main()
