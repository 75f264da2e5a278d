"""`recsys evaluate` and a log that has changed since training."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import evaluate, export, train
from recsys.config import parse_config
from recsys.types import InputError


def write(path: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": rng.permutation(rows) + 1000 * seed, "label": rng.integers(0, 2, rows)}
    pq.write_table(pa.table(columns), path)


def test_a_split_of_another_log_is_no_test(tmp_path: Path) -> None:
    """Rows that come before the others shift the draw of a random split: what is test then was
    trained on, and ids of one row each would seem to be learned."""
    write(tmp_path / "a" / "log" / "day2.parquet", 600, 2)
    tree = {
        "name": "changed",
        "data": {"source": "log", "label": "label", "split": {"method": "random"}},
        "features": {"id": {"type": "categorical"}},
        "embedding": {"method": "full", "embedding_dim": 2},
        "model": {"name": "lr"},
        "train": {"batch_size": 100, "max_epochs": 2},
        "tracking": {"uri": None},
    }
    result = train.run(parse_config(tree), root=str(tmp_path / "a"), out=tmp_path / "runs")
    bundle = Path(result["bundle"])
    shutil.copytree(tmp_path / "a", tmp_path / "copy", copy_function=shutil.copyfile)
    for root in ("a", "copy"):
        found = evaluate.run(bundle, root=str(tmp_path / root))
        assert found["metrics"]["test"] == result["metrics"]["test"]
    again = tmp_path / "again"
    export.run(bundle, again, root=str(tmp_path / "a"))
    write(tmp_path / "a" / "log" / "day1.parquet", 7, 1)
    for folder in (bundle, again):
        with pytest.raises(InputError, match=r"--split test: the log in .* has changed since"):
            evaluate.run(folder, root=str(tmp_path / "a"))
    new = [str(tmp_path / "a" / "log" / "day1.parquet")]
    assert evaluate.run(bundle, data=new)["metrics"]["data"]["rows"] == 7
