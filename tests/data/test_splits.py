"""Splits: disjoint, complete, stable under any cut into files; labels and weights checked."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.splits import splitmix64, splits
from recsys.settings import DataConfig
from recsys.types import InputError

RNG = np.random.default_rng(3)
ROWS = 600
TABLE = pa.table(
    {
        "n": np.arange(ROWS),
        "label": RNG.integers(0, 2, ROWS),
        "user": RNG.integers(0, 90, ROWS),
        "time": pa.array(RNG.integers(0, 200, ROWS) * 10**9).cast(pa.timestamp("ns")),
    }
)


def config(method, **options):
    split = {"method": method, **options}
    columns = {"label": "label", "group": "user", "timestamp": "time"}
    return DataConfig.model_validate({"source": "log", "split": split, **columns})


def write(root, table, cuts=(), group_rows=1000):
    (root / "log").mkdir(parents=True)
    bounds = [0, *sorted(cuts), table.num_rows]
    for i, (a, b) in enumerate(pairwise(bounds)):
        path = root / "log" / f"part-{i:03d}.parquet"
        pq.write_table(table.slice(a, b - a), path, row_group_size=group_rows)


def numbers(part, **options):
    return (
        []
        if part is None
        else [n for batch in part.batches(["n"], **options) for n in batch.column(0).to_pylist()]
    )


@settings(max_examples=15, deadline=None)
@given(
    method=st.sampled_from(["random", "time", "leave_last_out"]),
    cuts=st.lists(st.integers(0, ROWS), max_size=3),
    group_rows=st.integers(20, 700),
    batch_rows=st.integers(1, 700),
)
def test_parts_are_disjoint_complete_and_stable(
    tmp_path_factory, method, cuts, group_rows, batch_rows
):
    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    write(one, TABLE)
    write(many, TABLE, cuts, group_rows)
    whole = splits(config(method, seed=5), one)
    cut = splits(config(method, seed=5), many)
    parts = [numbers(part) for part in (whole.train, whole.valid, whole.test)]
    assert sorted(n for part in parts for n in part) == list(range(ROWS))
    for part, rows in zip((cut.train, cut.valid, cut.test), parts, strict=True):
        assert numbers(part, batch_rows=batch_rows) == rows
        assert part.num_rows == len(rows)
        for row in (0, len(rows) - 1) if rows else ():
            file, group, place = re.fullmatch(
                r"(.*), row group (\d+), row (\d+) of the group", part.place(row)
            ).groups()
            found = pq.ParquetFile(file).read_row_group(int(group), ["n"])["n"][int(place)]
            assert found.as_py() == rows[row]


def test_random_shares_and_seed(tmp_path):
    write(tmp_path, pa.table({"n": np.arange(20_000), "label": np.zeros(20_000, np.int8)}))
    options = {"source": "log", "label": "label"}
    first, second = (
        splits(
            DataConfig.model_validate(
                {**options, "split": {"method": "random", "valid": 0.2, "test": 0.1, "seed": seed}}
            ),
            tmp_path,
        )
        for seed in (1, 2)
    )
    # Binomial standard deviations are 57 and 42 rows.
    assert abs(first.valid.num_rows - 4000) < 230
    assert abs(first.test.num_rows - 2000) < 170
    assert numbers(first.test) != numbers(second.test)
    assert first.test.fingerprint != second.test.fingerprint != second.valid.fingerprint


def test_splitmix64_reference():
    # First outputs of Vigna's splitmix64.c with x = 1234567.
    assert splitmix64(np.arange(3, dtype=np.uint64), 1234567).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.int64(), pa.float64(), pa.uint64()])
def test_time_keeps_ties_in_the_later_part(tmp_path, kind):
    # Sorted: 1 2 3 4 5 5 5 6 7 8. Test (20 %) opens at place 8 (7), valid (30 %) at place 5: a 5.
    times = pa.array([5, 1, 8, 5, 2, 7, 3, 5, 4, 6], pa.int64()).cast(kind)
    write(tmp_path, pa.table({"n": range(10), "label": [0] * 10, "user": [0] * 10, "time": times}))
    parts = splits(config("time", valid=0.3, test=0.2), tmp_path)
    assert numbers(parts.test) == [2, 5]
    assert numbers(parts.valid) == [0, 3, 7, 9]
    assert numbers(parts.train) == [1, 4, 6, 8]


def test_time_bounds_equal_sorting_on_wide_ranges(tmp_path):
    rng = np.random.default_rng(0)
    times = rng.integers(-(2**62), 2**62, 5000)
    rows = {"n": range(5000), "label": [0] * 5000, "user": [0] * 5000, "time": times}
    write(tmp_path, pa.table(rows), group_rows=700)
    parts = splits(config("time", valid=0.11, test=0.07), tmp_path)
    order = np.argsort(times)
    assert numbers(parts.test) == sorted(order[5000 - 350 :].tolist())
    assert numbers(parts.valid) == sorted(order[5000 - 900 : 5000 - 350].tolist())


def test_leave_last_out_by_hand(tmp_path):
    table = pa.table(
        {
            "n": range(9),
            "label": [0] * 9,
            "user": ["a", "a", "a", "b", "b", "c", None, None, "a"],
            "time": [3, 9, 9, 5, 4, 1, 1, 2, 1],
        }
    )
    write(tmp_path, table)
    parts = splits(config("leave_last_out"), tmp_path)
    assert numbers(parts.test) == [2, 3, 5]  # a: the later of two 9s; b: 5; c: its only row
    assert numbers(parts.valid) == [1, 4]
    assert numbers(parts.train) == [0, 6, 7, 8]  # rows without a user are train


def test_weights_that_are_all_zero_are_refused(tmp_path):
    pq.write_table(pa.table({"label": [0, 1], "weight": [0.0, 0.0]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="all weights of column 'weight' are 0"):
        splits(DataConfig(train="x.parquet", label="label", weight="weight"), tmp_path)


def test_given_files(tmp_path):
    for name in ("train", "valid"):
        pq.write_table(pa.table({"n": [1, 2], "label": [0, 1]}), tmp_path / f"{name}.parquet")
    data = DataConfig(train="train.parquet", valid="valid.parquet", label="label")
    parts = splits(data, tmp_path)
    assert (numbers(parts.train), numbers(parts.valid), parts.test) == ([1, 2], [1, 2], None)


def test_folder_names_have_the_type_that_they_have_in_train(tmp_path):
    for folder in ("train/shop=a", "train/shop=01", "valid/shop=01", "test/shop=7"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"label": [0, 1]}), tmp_path / folder / "x.parquet")
    parts = splits(DataConfig(train="train", valid="valid", test="test", label="label"), tmp_path)
    assert parts.valid.schema.field("shop").type == pa.string()
    assert [b["shop"].to_pylist() for b in parts.valid.batches(["shop"])] == [["01", "01"]]
    assert [b["shop"].to_pylist() for b in parts.test.batches(["shop"])] == [["7", "7"]]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [0, 1, 2], "row group 1, row 0 of the group: column 'label': 2 is no label"),
        (
            "label",
            [0, None, 1],
            "row group 0, row 1 of the group: column 'label': None is no label",
        ),
        ("label", [0.0, 0.5, 1.0], "column 'label': 0.5 is no label"),
        (
            "label",
            ["0", "1", "1"],
            "x.parquet is string; cast it to a number, 1 for a click",
        ),
        ("weight", [1.0, 2.0, -0.5], "row group 1, row 0 of the group: column 'weight': -0.5"),
        ("weight", [1.0, float("inf"), 1.0], "column 'weight': inf is no weight"),
        ("weight", [1.0, None, 1.0], "column 'weight': None is no weight"),
        ("weight", [1.0, 1e39, 1.0], "column 'weight': 1e+39 is no weight"),
    ],
)
def test_bad_labels_and_weights_name_their_place(tmp_path, column, values, message):
    columns = {"label": [0, 1, 1], "weight": [1.0, 0.0, 2.0], column: values}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=2)
    with pytest.raises(InputError) as error:
        splits(DataConfig(train="x.parquet", label="label", weight="weight"), tmp_path)
    assert message in str(error.value)
    assert str(tmp_path / "x.parquet") in str(error.value)


@pytest.mark.parametrize("labels", [[True, False], [1.0, 0.0], pa.array([1, 0], pa.uint8())])
def test_labels_of_any_number_type(tmp_path, labels):
    pq.write_table(pa.table({"label": labels}), tmp_path / "x.parquet")
    assert splits(DataConfig(train="x.parquet", label="label"), tmp_path).train.num_rows == 2


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1, None, 2], "null values"),
        ([1.0, float("nan"), 2.0], "NaN values"),
        (["soon", "now", "then"], "is text that is no time by ISO 8601.*'(soon|now|then)'"),
        ([7, 7, 7], "no row of .* falls into train"),
    ],
)
def test_times_that_order_nothing(tmp_path, times, message):
    write(tmp_path, pa.table({"n": [0, 1, 2], "label": [0] * 3, "user": [0] * 3, "time": times}))
    with pytest.raises(InputError, match=message):
        splits(config("time", valid=0.3, test=0.3), tmp_path)


@pytest.mark.parametrize(
    "texts",
    [
        [f"2026-11-{day:02d}" for day in (3, 9, 1, 7)],
        [f"2026-11-01T{hour:02d}:00:00Z" for hour in (3, 9, 1, 7)],
        [f"2026-11-01 00:00:00.{part:02d}" for part in (3, 9, 1, 7)],
        [f"2026-11-01T00:00:0{part}.123456789Z" for part in (3, 9, 1, 7)],
    ],
)
def test_times_as_text_order_rows(tmp_path, texts):
    columns = {"n": [0, 1, 2, 3], "label": [0] * 4, "user": [0] * 4}
    write(tmp_path, pa.table(columns | {"time": texts}))
    found = splits(config("time", valid=0.25, test=0.25), tmp_path)
    assert [numbers(part) for part in (found.train, found.valid, found.test)] == [[0, 2], [3], [1]]


def test_folders_of_days_order_rows(tmp_path):
    for day, n in (("2026-11-30", 2), ("2026-11-02", 0), ("2026-11-10", 1)):
        (tmp_path / "log" / f"time={day}").mkdir(parents=True)
        row = pa.table({"n": [n], "label": [0], "user": [0]})
        pq.write_table(row, tmp_path / "log" / f"time={day}" / "x.parquet")
    found = splits(config("time", valid=0.3, test=0.3), tmp_path)
    assert [numbers(part) for part in (found.train, found.valid, found.test)] == [[0], [1], [2]]


@pytest.mark.parametrize("groups", [[0.5, 1.5], [[1], [2]]])
def test_groups_that_name_nobody(tmp_path, groups):
    pq.write_table(pa.table({"label": [0, 1], "g": groups}), tmp_path / "x.parquet")
    with pytest.raises(
        InputError, match=r"data.group: column 'g' is .*cast it to integers or text"
    ):
        splits(DataConfig(train="x.parquet", label="label", group="g"), tmp_path)


def test_what_decides_is_in_the_fingerprint(tmp_path):
    other = pa.array(RNG.permutation(ROWS) * 10**9).cast(pa.timestamp("ns"))
    table = TABLE.append_column("other", other).append_column("whole", pa.array(["one"] * ROWS))
    write(tmp_path, table)
    for method, changes in {
        "random": ({},),
        "time": ({}, {"timestamp": "other"}),
        "leave_last_out": ({}, {"timestamp": "other"}, {"group": "whole"}),
    }.items():
        tree = config(method).model_dump(exclude_unset=True)
        found = [
            splits(DataConfig.model_validate({**tree, **change}), tmp_path) for change in changes
        ]
        for name in ("train", "valid", "test"):
            rows = {tuple(numbers(getattr(parts, name))) for parts in found}
            prints = {getattr(parts, name).fingerprint for parts in found}
            assert len(rows) == len(prints) == len(changes), (method, name)
