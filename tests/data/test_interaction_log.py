"""Logs become sequences by the rule in its plainest words; clear refusals; atomic, reused files."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys.data import item_counts, user_buckets
from recsys.data.interactions import SequenceFiles, write_sequences
from recsys.data.interactions_config import InteractionsConfig
from recsys.types import InputError
from serving.parquet import open_source

LEAVE = {"method": "leave_one_out"}
TIME = {"method": "time", "valid": 0.2, "test": 0.3}

Event = tuple[Any, Any, Any]  # user, item, time
Rows = dict[Any, Any]  # user -> history (train), or (history, target)


def config(split: dict[str, Any] | None = None, **keys: str) -> InteractionsConfig:
    names = {"source": "log.parquet", "user": "who", "item": "what", "timestamp": "when"}
    return InteractionsConfig.model_validate(names | {"split": split or LEAVE} | keys)


def written(folder: Path, table: pa.Table, split: dict[str, Any] | None = None) -> SequenceFiles:
    pq.write_table(table, folder / "log.parquet", row_group_size=7)
    return write_sequences(open_source(folder / "log.parquet"), config(split), "seen", folder / "s")


def log(events: list[Event], item: pa.DataType | None = None) -> pa.Table:
    users, items, times = (list(column) for column in zip(*events, strict=True))
    return pa.table({"who": users, "what": pa.array(items, item), "when": times})


def rows(files: SequenceFiles) -> dict[str, Rows]:
    out: dict[str, Rows] = {}
    for part in ("train", "valid", "test"):
        source = getattr(files, part)
        found = pq.read_table(source.files[0]).to_pylist()
        assert len(found) == source.num_rows
        assert len({row["user"] for row in found}) == len(found), "one row a user"
        assert set(found[0]) == {"user", "seen"} | ({"target"} if part != "train" else set())
        out[part] = {
            row["user"]: (row["seen"], row["target"]) if part != "train" else row["seen"]
            for row in found
        }
    return out


def oracle(events: list[Event], split: dict[str, Any]) -> dict[str, Rows]:
    by_user: dict[Any, list[tuple[Any, Any]]] = defaultdict(list)
    for user, item, time in events:
        by_user[user].append((time, item))
    out: dict[str, Rows] = {"train": {}, "valid": {}, "test": {}}
    times = sorted(time for _, _, time in events)
    n = len(times)
    for user, found in by_user.items():
        found.sort(key=lambda event: event[0])  # stable
        items = [item for _, item in found]
        if split is LEAVE:
            kept = len(items) if len(items) == 1 else max(1, len(items) - 2)
            out["train"][user] = items[:kept]
            if len(items) >= 2:
                out["test"][user] = (items[:-1], items[-1])
            if len(items) >= 3:
                out["valid"][user] = (items[:-2], items[-2])
            continue
        first, second = (times[n - round(n * share)] for share in (0.5, 0.3))
        before = [item for time, item in found if time < first]
        between = [item for time, item in found if first <= time < second]
        after = [item for time, item in found if time >= second]
        if before:
            out["train"][user] = before
            if between:
                out["valid"][user] = (before, between[0])
        if before + between and after:
            out["test"][user] = (before + between, after[0])
    return out


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    events=st.lists(
        st.tuples(st.integers(-3, 9), st.integers(0, 5), st.integers(0, 20)),
        min_size=10,
        max_size=60,
    ),
    split=st.sampled_from([LEAVE, TIME]),
    bucket_rows=st.sampled_from([3, 20, 1000]),
)
def test_rule(
    events: list[Event],
    split: dict[str, Any],
    bucket_rows: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("rule")
    expected = oracle(events, split)
    empty = [part for part, found in expected.items() if not found]
    with (
        patch.object(user_buckets, "BUCKET_ROWS", bucket_rows),
        patch.object(user_buckets, "RUN_ROWS", 7),
        patch.object(item_counts, "_PENDING", 2),
    ):
        if empty:
            with pytest.raises(InputError, match=f"has a row in {empty[0]}, which takes"):
                written(folder, log(events), split)
            return
        files = written(folder, log(events), split)
    assert rows(files) == expected
    counts = Counter(item for items in expected["train"].values() for item in items)
    catalogue = pq.read_table(files.catalogue).to_pylist()
    assert [(row["item"], row["count"]) for row in catalogue] == sorted(
        counts.items(), key=lambda pair: (-pair[1], pair[0])
    )


def test_by_hand(tmp_path: Path) -> None:
    events = [("a", 4, 9), ("a", 1, 1), ("b", 7, 5), ("a", 2, 1), ("c", 5, 2), ("a", 3, 4)]
    events += [("c", 6, 3)]
    out = rows(written(tmp_path, log(events)))
    assert out["train"] == {"a": [1, 2], "b": [7], "c": [5]}  # one item: train; two: train and test
    assert out["valid"] == {"a": ([1, 2], 3)}
    assert out["test"] == {"a": ([1, 2, 3], 4), "c": ([5], 6)}


def test_no_target_of_valid_is_an_event_of_test(tmp_path: Path) -> None:
    """User a comes back only after the second cut: a row of test, none of valid."""
    events = [("a", 1, 0), ("b", 2, 1), ("b", 3, 2), ("c", 9, 3), ("b", 4, 5), ("b", 8, 6)]
    events += [("d", 5, 6), ("a", 6, 7), ("b", 7, 8), ("b", 7, 9)]
    out = rows(written(tmp_path, log(events), TIME))  # cuts: the 6th row (6) and the 8th (7)
    assert out["train"] == {"a": [1], "b": [2, 3, 4], "c": [9]}
    assert out["valid"] == {"b": ([2, 3, 4], 8)}
    assert out["test"] == {"a": ([1], 6), "b": ([2, 3, 4, 8], 7)}


@pytest.mark.parametrize(
    "dtype",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
        pa.int8(),
        pa.int64(),
        pa.uint64(),
        pa.bool_(),
        pa.timestamp("ms"),
    ],
    ids=str,
)
def test_types_of_columns(tmp_path: Path, dtype: pa.DataType) -> None:
    codes = [0, 1, 1, 0, 1, 1]
    plain = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    if pa.types.is_timestamp(dtype):
        values: list[Any] = [datetime(2020, 1, 1), datetime(2021, 1, 1)]
    elif pa.types.is_boolean(dtype):
        values = [False, True]
    elif pa.types.is_integer(dtype):
        values = [3, 100]
    else:
        values = [b"x", b"y"] if plain == pa.binary() else ["x", "y"]
    column = pa.array([values[code] for code in codes], plain).cast(dtype)
    times = [1, 2, 3, 4, 5, 6]
    items = written(tmp_path, pa.table({"who": ["u"] * 6, "what": column, "when": times}))
    assert rows(items)["test"] == {"u": ([values[c] for c in codes[:-1]], values[1])}
    assert rows(items)["train"] == {"u": [values[c] for c in codes[:-2]]}
    (tmp_path / "users").mkdir()
    users = written(tmp_path / "users", pa.table({"who": column, "what": times, "when": times}))
    assert rows(users)["test"] == {values[0]: ([1], 4), values[1]: ([2, 3, 5], 6)}


def test_clocks(tmp_path: Path) -> None:
    moments = [datetime(2020, 1, day, tzinfo=UTC) for day in (4, 1, 3, 2)]
    for name, when in (
        ("timestamp", pa.array(moments, pa.timestamp("us", "UTC"))),
        ("date", pa.array([m.date() for m in moments])),
        ("float", pa.array([0.5, -2.0, 0.25, 0.0])),
    ):
        (tmp_path / name).mkdir()
        table = pa.table({"who": [1] * 4, "what": [14, 11, 13, 12], "when": when})
        assert rows(written(tmp_path / name, table))["test"] == {1: ([11, 12, 13], 14)}


@pytest.mark.parametrize("split", [LEAVE, TIME], ids=["leave_one_out", "time"])
@pytest.mark.parametrize(
    ("column", "role"), [("who", "user"), ("what", "item"), ("when", "timestamp")]
)
def test_null_names_its_row(tmp_path: Path, column: str, role: str, split: dict[str, Any]) -> None:
    table = pa.table({name: list(range(20)) for name in ("who", "what", "when")})
    values = pa.array([None if i == 9 else i for i in range(20)])
    table = table.set_column(table.column_names.index(column), column, values)
    with pytest.raises(InputError) as caught:
        written(tmp_path, table, split)
    message = str(caught.value)
    assert "log.parquet, row group 1, row 2 of the group" in message
    assert f"{role} column '{column}' is null; drop or fill such rows" in message
    assert "\n" not in message
    assert list((tmp_path / "s").iterdir()) == [], "nothing half written stays"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"what": pa.array([1.0, 2.0, 3.0])}, "what: double values cannot be categories"),
        ({"who": pa.array([[1], [2], [3]])}, "who: a list column"),
        ({"when": pa.array(["1", "2", "3"])}, "timestamp column 'when' is text that is no time"),
        ({"when": pa.array([1.0, float("nan"), 2.0])}, "timestamp column 'when' has NaN"),
        ({"what": None}, "column 'what' is missing"),
    ],
)
def test_refused_columns(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    columns = {"who": [1, 1, 1], "what": [1, 2, 3], "when": [1, 2, 3]} | change
    table = pa.table({name: values for name, values in columns.items() if values is not None})
    with pytest.raises(InputError, match=message):
        written(tmp_path, table)


def test_column_of_the_files_own(tmp_path: Path) -> None:
    pq.write_table(log([(1, 2, 3)]), tmp_path / "log.parquet")
    with pytest.raises(InputError, match=r"features\.target: sequences have a column 'target'"):
        write_sequences(open_source(tmp_path / "log.parquet"), config(), "target", tmp_path)


@pytest.mark.parametrize(
    ("events", "split", "message"),
    [
        ([(1, 1, 1), (2, 1, 1)], LEAVE, "leave_one_out: no user of .* valid, which takes three"),
        ([(1, 1, 1), (1, 1, 2)], LEAVE, "leave_one_out: no user of .* valid, which takes three"),
        ([(u, 1, 5) for u in range(9)], TIME, "time: no user of .* in train, which takes an inter"),
        ([(u, 1, u) for u in range(9)], TIME, "time: no user of .* in valid, which takes one"),
    ],
)
def test_empty_part(
    tmp_path: Path, events: list[Event], split: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        written(tmp_path, log(events), split)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize(
    ("split", "keys", "message"),
    [
        ({"method": "time", "valid": 0.5, "test": 0.5}, {}, "must be below 1"),
        ({"method": "time", "valid": 0.0}, {}, "greater than 0"),
        ({"method": "leave_one_out", "test": 0.1}, {}, "Extra inputs"),
        ({"method": "random"}, {}, "leave_one_out"),
        (LEAVE, {"item": "who"}, "must be three columns"),
    ],
)
def test_refused_config(split: dict[str, Any], keys: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(split, **keys)


def test_reused_and_written_anew(tmp_path: Path) -> None:
    events = [(user, item, item) for user in range(4) for item in range(5)]
    files = written(tmp_path, log(events))
    stamp = files.catalogue.stat().st_mtime_ns
    source = open_source(tmp_path / "log.parquet")
    again = write_sequences(source, config(), "seen", tmp_path / "s")
    assert again.catalogue == files.catalogue
    assert again.catalogue.stat().st_mtime_ns == stamp
    assert again.train.fingerprint == files.train.fingerprint
    others = [
        write_sequences(source, config(), "other", tmp_path / "s").catalogue,
        write_sequences(source, config(TIME), "seen", tmp_path / "s").catalogue,
        written(tmp_path, log(events[:-1])).catalogue,
    ]
    assert len({files.catalogue, *others}) == 4
    expected = rows(files)
    Path(files.valid.files[0]).unlink()
    pq.write_table(log(events), tmp_path / "x.parquet")
    whole = written(tmp_path, log(events))
    assert rows(whole) == expected
    assert not [path for path in (tmp_path / "s").rglob("*") if path.name.startswith(".")]
    assert not list((tmp_path / "s").rglob("users.arrow")), "the buckets are temporary"
