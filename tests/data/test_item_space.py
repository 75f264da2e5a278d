"""Which encoded id is which item, and that whole sequences count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from recsys.data.interactions import SequenceFiles, write_sequences
from recsys.data.interactions_config import InteractionsConfig
from recsys.data.item_space import fit_sequences, raw_items, special_ids, train_items
from recsys.features import FeatureConfig, Features
from recsys.types import InputError
from serving.parquet import open_source

RULE = InteractionsConfig.model_validate(
    {
        "source": "log.parquet",
        "user": "who",
        "item": "what",
        "timestamp": "when",
        "split": {"method": "leave_one_out"},
    }
)


def written(folder: Path, events: list[tuple[Any, Any, int]]) -> SequenceFiles:
    users, items, times = (list(column) for column in zip(*events, strict=True))
    pq.write_table(pa.table({"who": users, "what": items, "when": times}), folder / "log.parquet")
    return write_sequences(open_source(folder / "log.parquet"), RULE, "seen", folder / "s")


def fitted(files: SequenceFiles, **options: Any) -> Features:
    tree = {"seen": {"type": "sequence", "max_length": 2, **options}}
    return fit_sequences(TypeAdapter(dict[str, FeatureConfig]).validate_python(tree), files.train)


def test_item_space(tmp_path: Path) -> None:
    lists = {"a": "pqrpxyz", "b": "prrxyz", "c": "psxyz"}  # the last two are valid and test
    events = [(user, item, t) for user, items in lists.items() for t, item in enumerate(items)]
    files = written(tmp_path, events)
    features = fitted(files)
    assert features.inputs[0].max_length is None, "the graph takes whole lists"
    assert features.fields[0].max_length == 2
    # Items beyond max_length count: p 4 times, r and x 3 times (x of a, b, c), q and s once.
    ids = raw_items(train_items(files.catalogue), features).to_pylist()
    assert special_ids(features) == 2
    assert ids[:3] == [None, None, "p"]
    assert set(ids[3:5]) == {"r", "x"}
    assert set(ids[5:]) == {"q", "s"}
    assert features.fields[0].counts is not None
    assert features.fields[0].counts.tolist() == [0, 0, 4, 3, 3, 1, 1]
    rare = fitted(files, min_count=2, oov_ids=2)
    assert special_ids(rare) == 3
    assert set(raw_items(train_items(files.catalogue), rare).to_pylist()) == {None, "p", "r", "x"}
    assert Features.load(_saved(features, tmp_path)).inputs == features.inputs


def test_a_catalogue_without_items_is_refused(tmp_path: Path) -> None:
    files = written(tmp_path, [(user, item, item) for user in "ab" for item in range(4)])
    with pytest.raises(InputError, match=r"features\.seen: no item of train .* lower min_count"):
        fitted(files, min_count=3)


def _saved(features: Features, folder: Path) -> Path:
    features.save(folder / "features")
    return folder / "features"
