"""Reading: every row once, every type, every kind of damage."""

from __future__ import annotations

import datetime
import decimal
import os
import random
import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InputError
from serving.parquet import open_source, write_parquet


def rows_of(source, columns, **options):
    return [row for batch in source.batches(columns, **options) for row in batch.to_pylist()]


def write(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(values), path, **options)
    return path


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any),
    group_rows=st.integers(1, 17),
    batch_rows=st.integers(1, 50),
    as_dictionary=st.booleans(),
)
def test_every_row_once_in_order(tmp_path_factory, sizes, group_rows, batch_rows, as_dictionary):
    folder = tmp_path_factory.mktemp("log")
    first, expected = 0, []
    for i, size in enumerate(sizes):
        numbers = list(range(first, first + size))
        names = [None if n % 5 == 0 else f"v{n % 7}" for n in numbers]
        columns = {"n": pa.array(numbers, pa.int64()), "s": pa.array(names, pa.string())}
        write(folder / f"part-{i}.parquet", columns, row_group_size=group_rows)
        expected += [{"s": s, "n": n} for n, s in zip(numbers, names, strict=True)]
        first += size
    source = open_source(folder)
    batches = list(
        source.batches(["s", "n"], batch_rows, dictionary=["s"] if as_dictionary else [])
    )
    assert [row for batch in batches for row in batch.to_pylist()] == expected
    assert all(1 <= batch.num_rows <= batch_rows for batch in batches)
    assert source.num_rows == len(expected)
    assert pa.types.is_dictionary(batches[0].schema.field("s").type) == as_dictionary
    assert source.place(source.num_rows - 1).startswith(source.files[-1]) == (sizes[-1] > 0)


TYPES = {
    "text": pa.array(["a", None, ""]),
    "large": pa.array(["a", None, ""], pa.large_string()),
    "view": pa.array(["a", None, ""], pa.string_view()),
    "bytes": pa.array([b"\xff", None, b""]),
    "dictionary": pa.array(["x", None, "x"]).dictionary_encode(),
    "int_dictionary": pa.array([7, None, 7]).dictionary_encode(),
    "list": pa.array([["a", None], [], None]),
    "large_list": pa.array([[1], [], None], pa.large_list(pa.int32())),
    "dictionary_list": pa.array(
        [["a"], [], None], pa.list_(pa.dictionary(pa.int32(), pa.string()))
    ),
    "bool": pa.array([True, None, False]),
    "decimal": pa.array([decimal.Decimal("1.5"), None, decimal.Decimal("-2.0")]),
    "half": pa.array([1.5, None, 2.0], pa.float16()),
    "date": pa.array([1, None, 3], pa.date32()),
    "null": pa.nulls(3),
    **{
        f"ts_{unit}": pa.array([1000, None, 3000], pa.timestamp(unit))
        for unit in ("ms", "us", "ns")
    },
    "ts_zone": pa.array([1, None, 3], pa.timestamp("us", "UTC")),
}
for kind in (pa.int8, pa.int16, pa.int32, pa.int64, pa.uint8, pa.uint16, pa.uint32, pa.uint64):
    TYPES[kind.__name__] = pa.array([1, None, 3], kind())


@pytest.mark.parametrize("name", list(TYPES))
@pytest.mark.parametrize("as_dictionary", [False, True])
def test_every_type_survives(tmp_path, name, as_dictionary):
    write(tmp_path / "x.parquet", {"c": TYPES[name]}, row_group_size=2)
    source = open_source(tmp_path / "x.parquet")
    batches = list(source.batches(["c"], 2, dictionary=["c"] if as_dictionary else []))
    assert [row["c"] for b in batches for row in b.to_pylist()] == TYPES[name].to_pylist()
    if not as_dictionary:
        assert all(b.schema == source.schema for b in batches)


def test_dictionaries_of_many_files_can_be_joined(tmp_path):
    """pandas writes categories with codes of eight bits: more than 127 values do not fit."""
    days = [[f"day {day}, {i % 60}" for i in range(100)] for day in range(3)]
    for day, values in enumerate(days):
        coded = pa.array(values).dictionary_encode()
        coded = coded.cast(pa.dictionary(pa.int8(), pa.string()))
        lists = pa.ListArray.from_arrays(pa.array(range(101), pa.int32()), coded)
        write(tmp_path / "log" / f"{day}.parquet", {"c": coded, "l": lists})
    source = open_source(tmp_path / "log")
    with write_parquet(tmp_path / "out.parquet", source.schema) as writer:
        writer.write_table(pa.Table.from_batches(source.batches(["c", "l"], 70)))
    out = pq.read_table(tmp_path / "out.parquet")
    values = [value for day in days for value in day]
    assert out["c"].to_pylist() == values
    assert out["l"].to_pylist() == [[value] for value in values]
    assert pa.Table.from_batches(source.batches(["c"])).combine_chunks().num_rows == 300


def test_a_file_without_rows_says_nothing_about_types(tmp_path):
    write(
        tmp_path / "log" / "a.parquet",
        {"c": pa.array([], pa.bool_()), "d": pa.array([], pa.int8())},
    )
    write(tmp_path / "log" / "b.parquet", {"c": [1.5, 2.5]})
    source = open_source(tmp_path / "log")
    assert source.schema == pa.schema([("c", pa.float64())])
    assert rows_of(source, ["c"]) == [{"c": 1.5}, {"c": 2.5}]
    with pytest.raises(InputError, match=r"column 'clicked' is missing; there are c$"):
        source.batches(["clicked"])


def test_views_can_be_filtered(tmp_path):
    write(tmp_path / "x.parquet", {"c": TYPES["view"]})
    (batch,) = open_source(tmp_path / "x.parquet").batches(["c"])
    assert batch.filter(pa.array([True, False, True])).column("c").to_pylist() == ["a", ""]


def test_hive_folder(tmp_path):
    write(tmp_path / "log/day=01/country=a%20b/x.parquet", {"n": [1, 2]})
    write(tmp_path / "log/day=02/country=__HIVE_DEFAULT_PARTITION__/x.parquet", {"n": [3]})
    for junk in ("_SUCCESS", "_metadata", ".x.parquet.crc", "notes.txt", "day=01/.tmp.parquet"):
        (tmp_path / "log" / junk).write_text("junk")
    source = open_source("log", root=tmp_path)
    assert rows_of(source, ["country", "n", "day"], dictionary=["country"]) == [
        {"country": "a b", "n": 1, "day": 1},
        {"country": "a b", "n": 2, "day": 1},
        {"country": None, "n": 3, "day": 2},
    ]
    assert rows_of(source, ["day"], batch_rows=1) == [{"day": 1}, {"day": 1}, {"day": 2}]
    assert source.schema.names == ["n", "day", "country"]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("log/*.parquet", [1, 2]),
        ("log/**/*.parquet", [1, 2, 3]),
        ("log/day=*", [3]),
        ("log/[ab].parquet", [1, 2]),
        (["log/b.parquet", "log/a.parquet", "log/a.parquet"], [1, 2]),
        ("file://{root}/log/?.parquet", None),
        ("file://{root}/log/a.parquet", [1]),
        (["{root}/log"], [1, 2, 3]),
    ],
)
def test_globs_lists_and_urls(tmp_path, paths, expected):
    write(tmp_path / "log/a.parquet", {"n": [1]})
    write(tmp_path / "log/b.parquet", {"n": [2]})
    write(tmp_path / "log/day=1/c.parquet", {"n": [3]})
    items = [paths] if isinstance(paths, str) else paths
    items = [item.format(root=tmp_path) for item in items]
    if expected is None:
        with pytest.raises(InputError, match=r"cannot open|names no Parquet file"):
            open_source(items)
        return
    assert [row["n"] for row in rows_of(open_source(items, root=tmp_path), ["n"])] == expected


def test_memory_filesystem():
    files = fsspec.filesystem("memory")
    for day in (1, 2):
        with files.open(f"/recsys-test/day={day}/x.parquet", "wb") as out:
            pq.write_table(pa.table({"n": [day * 10]}), out)
    source = open_source("memory://recsys-test")
    assert rows_of(source, ["n", "day"]) == [{"n": 10, "day": 1}, {"n": 20, "day": 2}]
    before = source.fingerprint
    with files.open("/recsys-test/day=2/x.parquet", "wb") as out:
        pq.write_table(pa.table({"n": [21]}), out)
    assert open_source("memory://recsys-test").fingerprint != before


def test_types_of_one_column_may_differ_within_a_family(tmp_path):
    write(
        tmp_path / "a.parquet",
        {"i": pa.array([1], pa.int8()), "s": pa.array(["a"]), "n": pa.nulls(1)},
    )
    write(
        tmp_path / "b.parquet",
        {"i": pa.array([2**40]), "s": pa.array(["b"]).dictionary_encode(), "n": pa.array([1.5])},
    )
    source = open_source(tmp_path)
    assert rows_of(source, ["i", "s", "n"]) == [
        {"i": 1, "s": "a", "n": None},
        {"i": 2**40, "s": "b", "n": 1.5},
    ]
    assert len({b.schema for b in source.batches(["i", "s", "n"])}) == 1


def test_fingerprint_follows_content_not_place(tmp_path):
    write(tmp_path / "one/a.parquet", {"n": [1, 2, 3]})
    write(tmp_path / "one/b.parquet", {"n": [4]})
    before = open_source(tmp_path / "one").fingerprint
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert open_source(tmp_path / "two").fingerprint == before
    # Same size, same row count, same minimum and maximum.
    write(tmp_path / "two/a.parquet", {"n": [1, 1, 3]})
    changed = open_source(tmp_path / "two").fingerprint
    assert changed != before
    os.rename(tmp_path / "two/b.parquet", tmp_path / "two/c.parquet")
    assert open_source(tmp_path / "two").fingerprint != changed


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_paths_and_empty_data(tmp_path):
    with pytest.raises(InputError, match="names no Parquet file"):
        open_source("nowhere", root=tmp_path)
    with pytest.raises(InputError, match="list of paths is empty"):
        open_source([])
    with pytest.raises(InputError, match="Protocol not known"):
        open_source("xyz://a")
    write(tmp_path / "a.parquet", {"n": pa.array([], pa.int64())})
    with pytest.raises(InputError, match="no rows"):
        open_source(tmp_path)
    write(tmp_path / "b.parquet", {"n": [1]})
    assert rows_of(open_source(tmp_path), ["n"]) == [{"n": 1}]


@pytest.mark.parametrize("keep", [0, 3, 60, 0.5, -1])
def test_cut_files(tmp_path, keep):
    whole = write(tmp_path / "whole", {"n": list(range(1000))}).read_bytes()
    size = int(len(whole) * keep) if isinstance(keep, float) else keep
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(whole[:size])
    with pytest.raises(InputError) as error:
        open_source(bad)
    assert str(bad) in one_line(error)
    assert ("empty (0 bytes)" if keep == 0 else "not a readable Parquet file") in str(error.value)


def test_damage_names_file_row_group_and_column(tmp_path):
    path = tmp_path / "x.parquet"
    rng = random.Random(1)
    text = [f"{rng.random()}" for _ in range(4000)]
    write(path, {"n": list(range(4000)), "s": text}, row_group_size=1000, use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(1)
    raw = bytearray(path.read_bytes())
    start = chunk.data_page_offset
    raw[start : start + 400] = b"\xff" * 400
    path.write_bytes(bytes(raw))
    source = open_source(path)
    assert len(rows_of(source, ["n"])) == 4000
    with pytest.raises(InputError) as error:
        rows_of(source, ["n", "s"])
    assert f"{path}: row group 2, column 's' cannot be read" in one_line(error)


def test_columns_missing_twice_or_of_another_type(tmp_path):
    a = write(tmp_path / "a.parquet", {"price": [1], "id": [1]})
    b = write(tmp_path / "b.parquet", {"price": ["x"], "id": [1]})
    source = open_source(tmp_path)
    assert len(rows_of(source, ["id"])) == 2  # an unused column may differ
    with pytest.raises(InputError) as error:
        source.batches(["price"])
    assert f"{b}: column 'price' is string, but int64 in {a}" in one_line(error)
    with pytest.raises(InputError, match=r"column 'prize' is missing; did you mean 'price'\?"):
        open_source(a).batches(["prize"])
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["n", "n"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(InputError, match="column 'n' is there twice"):
        open_source(tmp_path / "twice.parquet").batches(["n"])


def test_numbers_of_several_types_are_read_as_floats(tmp_path):
    """What pandas writes on a day with a null, beside a day without."""
    write(tmp_path / "a.parquet", {"v": pa.array([1, 2**53 + 1])})
    write(tmp_path / "b.parquet", {"v": pa.array([2.5, None])})
    write(tmp_path / "c.parquet", {"v": pa.array([True])})
    write(tmp_path / "d.parquet", {"v": pa.array(["1.25"]).cast(pa.decimal128(5, 2))})
    found = [row["v"] for row in rows_of(open_source(tmp_path), ["v"])]
    assert found == [1.0, 2.0**53, 2.5, None, 1.0, 1.25]


def test_times_of_several_units_are_read_as_microseconds(tmp_path):
    never = datetime.datetime(9999, 12, 31)
    write(tmp_path / "a.parquet", {"t": pa.array([1_000_001_999], pa.timestamp("ns"))})
    write(tmp_path / "b.parquet", {"t": pa.array([never], pa.timestamp("us"))})
    found = [row["t"] for row in rows_of(open_source(tmp_path), ["t"])]
    assert found == [datetime.datetime(1970, 1, 1, 0, 0, 1, 1), never]
    lists = pa.array([[1_000_001_999]], pa.list_(pa.timestamp("ns")))
    others = pa.array([[never]], pa.list_(pa.timestamp("us")))
    write(tmp_path / "lists" / "a.parquet", {"t": lists})
    write(tmp_path / "lists" / "b.parquet", {"t": others})
    nested = [row["t"] for row in rows_of(open_source(tmp_path / "lists"), ["t"])]
    assert nested == [[value] for value in found]


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.CSV.gz"])
def test_other_formats_say_what_to_do(tmp_path, name):
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=f"{name}: is no Parquet file; convert it, for example"):
        open_source(tmp_path / name)


def test_content_is_the_same_for_a_copy(tmp_path):
    first = write(tmp_path / "a" / "x.parquet", {"n": [1, 2]})
    copy = tmp_path / "b" / "x.parquet"
    copy.parent.mkdir()
    copy.write_bytes(first.read_bytes())
    os.utime(copy, (1, 1))
    one, other = open_source(first.parent), open_source(copy.parent)
    assert one.content == other.content
    assert one.fingerprint != other.fingerprint
    write(tmp_path / "b" / "y.parquet", {"n": [3]})
    assert open_source(copy.parent).content != one.content


def test_nulls_among_lists_of_a_fixed_size_are_not_called_damage(tmp_path):
    lists = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2))
    write(tmp_path / "x.parquet", {"v": lists})
    with pytest.raises(InputError, match=r"column .v. cannot be read .*write them as plain lists"):
        list(open_source(tmp_path / "x.parquet").batches(["v"]))


def test_damaged_bytes_never_escape_as_other_errors(tmp_path):
    path = write(
        tmp_path / "x.parquet", {"n": list(range(500)), "s": [f"v{i % 9}" for i in range(500)]}
    )
    raw, rng = path.read_bytes(), random.Random(7)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(150):
        damaged = bytearray(raw)
        for _ in range(3):
            damaged[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            source = open_source(path)
            for batch in source.batches(source.schema.names[:2], dictionary=["s"]):
                assert batch.num_rows
            outcomes["read"] += 1
        except InputError as error:
            outcomes["refused"] += "\n" not in str(error)
    assert sum(outcomes.values()) == 150
    assert outcomes["refused"] > 20


def test_write_parquet_is_atomic(tmp_path):
    path, schema = tmp_path / "new" / "x.parquet", pa.schema([("n", pa.int64())])
    with write_parquet(path, schema) as writer:
        writer.write_table(pa.table({"n": [1, 2]}))
        assert not path.exists()
    assert rows_of(open_source(path), ["n"]) == [{"n": 1}, {"n": 2}]
    with pytest.raises(pa.ArrowInvalid), write_parquet(path, schema) as writer:
        writer.write_table(pa.table({"n": ["not a number"]}).cast(schema))
    assert rows_of(open_source(path), ["n"]) == [{"n": 1}, {"n": 2}]
    assert os.listdir(path.parent) == ["x.parquet"]
    with pytest.raises(InputError, match="cannot write to"), write_parquet("s3://b/x", schema):
        pass


def test_dictionaries_decode_to_the_same_text(tmp_path):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.integers(0, 50_000, 20_000)]  # outgrows the dictionary page
    write(tmp_path / "x.parquet", {"s": words}, row_group_size=7000, dictionary_pagesize_limit=4096)
    source = open_source(tmp_path)
    got = [
        v for b in source.batches(["s"], 3000, dictionary=["s"]) for v in b.column(0).to_pylist()
    ]
    assert got == words


def test_int96_times_beyond_2262_do_not_wrap_around(tmp_path):
    moments = [datetime.datetime(2024, 1, 1), datetime.datetime(9999, 12, 31), None]
    table = pa.table({"t": pa.array(moments, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    rows = rows_of(open_source(tmp_path / "a.parquet"), ["t"])
    assert [row["t"] for row in rows] == moments
