"""MovieLens-1M's published leave-one-out split, from the log alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.data.interactions import write_sequences
from recsys.data.interactions_config import InteractionsConfig
from serving.parquet import open_source

REPO = Path(__file__).parents[2]
ROOT = Path(os.environ.get("RECSYS_DATA_ROOT", REPO.parent / "shared" / "data"))
ML_1M = ROOT / "ml-1m"


@pytest.mark.skipif(not ML_1M.is_dir(), reason=f"no ml-1m data under {ROOT} (RECSYS_DATA_ROOT)")
def test_ml_1m_agrees_with_its_given_split(tmp_path: Path) -> None:
    rule = InteractionsConfig.model_validate(
        {
            "source": "interactions.parquet",
            "user": "user",
            "item": "item",
            "timestamp": "pos",
            "split": {"method": "leave_one_out"},
        }
    )
    files = write_sequences(open_source(ML_1M / "interactions.parquet"), rule, "seen", tmp_path)
    given = {}
    for part in ("train", "valid", "test"):
        table = pq.read_table(ML_1M / f"{part}.parquet").sort_by([("user", "ascending")])
        users = table["user"].to_numpy()
        order = np.lexsort((table["pos"].to_numpy(), users))
        starts = np.flatnonzero(np.diff(users[order], prepend=-1))
        given[part] = np.split(table["item"].to_numpy()[order], starts[1:])
        source = getattr(files, part)
        assert source.num_rows == len(given[part]) == 6040
    by_user = {
        part: pq.read_table(getattr(files, part).files[0]).sort_by([("user", "ascending")])
        for part in given
    }
    lists = {part: table["seen"].to_pylist() for part, table in by_user.items()}
    for user in range(6040):
        train, (valid,), (test,) = (given[part][user] for part in ("train", "valid", "test"))
        assert lists["train"][user] == lists["valid"][user] == train.tolist()
        assert by_user["valid"]["target"][user].as_py() == valid
        assert lists["test"][user] == [*train, valid]
        assert by_user["test"]["target"][user].as_py() == test
    assert pq.read_metadata(files.catalogue).num_rows == 3416, "train has all items"
