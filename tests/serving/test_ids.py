"""Id rule v1 against the reference xxHash, over every Arrow type and encoding."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.encode import NULL_ID, ids_of, is_list, type_family, unique_ids
from serving.errors import InputError
from serving.ids import ids_of_columns

TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view()]
BINARY_TYPES = [pa.binary(), pa.large_binary(), pa.binary_view()]
INT_TYPES = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]


def reference(values: list[str | bytes | None]) -> list[int]:
    ids = []
    for value in values:
        raw = value.encode() if isinstance(value, str) else value
        word = None if raw is None else xxhash.xxh64_intdigest(raw, seed=0)
        ids.append(NULL_ID if word is None else word - 2**64 if word >= 2**63 else word)
    return ids


def test_golden_vectors() -> None:
    # Published XXH64 vectors (seed 0): the empty input and "abc"; then what a bundle relies on.
    assert ids_of(pa.array(["", "abc"]), "x").view(np.uint64).tolist() == [
        0xEF46DB3751D8E999,
        0x44BC2CF5AD770999,
    ]
    assert ids_of(pa.array(["17", "é", None]), "x").tolist() == [
        4515155089025077856,
        1717938401253289848,
        -(2**63),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.text(max_size=60), max_size=25), st.data())
def test_text_in_every_encoding(values: list[str | None], data: st.DataObject) -> None:
    expected = reference(values)
    start = data.draw(st.integers(0, len(values)))
    cut = data.draw(st.integers(0, len(values)))
    plain = pa.array(values, pa.string())
    for dtype in TEXT_TYPES:
        array = plain.cast(dtype)
        assert ids_of(array, "x").tolist() == expected
        assert ids_of(array.slice(start), "x").tolist() == expected[start:]
        chunked = pa.chunked_array([array.slice(0, cut), array.slice(cut)], dtype)
        assert ids_of(chunked, "x").tolist() == expected
    dictionary = plain.dictionary_encode()
    assert ids_of(dictionary, "x").tolist() == expected
    assert ids_of(dictionary.slice(start), "x").tolist() == expected[start:]
    pieces = [plain.slice(0, cut).dictionary_encode(), plain.slice(cut).dictionary_encode()]
    assert ids_of(pa.chunked_array(pieces), "x").tolist() == expected
    for array in (plain, dictionary, dictionary.slice(start), pa.chunked_array(pieces)):
        ids, codes = unique_ids(array, "x")
        assert codes.dtype == np.int32
        assert ids[codes].tolist() == ids_of(array, "x").tolist()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.none() | st.binary(max_size=40), max_size=20))
def test_binary_hashes_its_bytes(values: list[bytes | None]) -> None:
    for dtype in BINARY_TYPES:
        assert ids_of(pa.array(values, dtype), "x").tolist() == reference(values)


def test_fixed_size_binary() -> None:
    values = [b"abcd", None, b"\xff\x00\x01\x02"]
    assert ids_of(pa.array(values, pa.binary(4)), "x").tolist() == reference(values)


def test_text_with_a_null_in_its_dictionary_and_repeated_entries() -> None:
    array = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, None, 3], pa.int8()), pa.array(["a", None, "b", "a"])
    )
    expected = reference(["a", None, "b", None, "a"])
    assert ids_of(array, "x").tolist() == expected
    ids, codes = unique_ids(array, "x")
    assert ids[codes].tolist() == expected


def test_codes_of_a_full_int8_dictionary_with_nulls() -> None:
    values = [f"v{i}" for i in range(128)]
    codes = pa.array([*range(128), None], pa.int8())  # the place of null, 128, is no int8
    array = pa.DictionaryArray.from_arrays(codes, pa.array(values))
    assert ids_of(array, "x").tolist() == reference([*values, None])


def test_small_slice_of_a_big_dictionary_is_the_same() -> None:
    array = pa.array([f"v{i}" for i in range(1000)]).dictionary_encode()
    assert ids_of(array.slice(500, 3), "x").tolist() == reference(["v500", "v501", "v502"])
    ids, codes = unique_ids(array.slice(500, 3), "x")
    assert len(ids) == 3  # not the thousand entries
    assert ids[codes].tolist() == reference(["v500", "v501", "v502"])


@pytest.mark.parametrize("dtype", INT_TYPES, ids=str)
def test_integers_are_themselves(dtype: pa.DataType) -> None:
    info = np.iinfo(dtype.to_pandas_dtype())
    array = pa.array([0, info.max, None, info.min, 7], dtype)
    highest = -1 if dtype == pa.uint64() else info.max  # all bits set, read as int64
    expected = [0, highest, NULL_ID, info.min, 7]
    assert ids_of(array, "x").tolist() == expected
    assert ids_of(array.slice(1, 3), "x").tolist() == expected[1:4]
    assert ids_of(array.dictionary_encode(), "x").tolist() == expected


def test_bools() -> None:
    assert ids_of(pa.array([True, None, False]), "x").tolist() == [1, NULL_ID, 0]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_one_moment_has_one_id_in_every_unit(unit: str, zone: str | None) -> None:
    moment = dt.datetime(2024, 2, 29, 12, 30, 1, tzinfo=dt.UTC)
    array = pa.array([moment, None], pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, zone))
    assert ids_of(array, "x").tolist() == [1_709_209_801_000_000, NULL_ID]


def test_dates_and_digits_below_a_microsecond() -> None:
    day = 86_400 * 10**6
    for dtype in (pa.date32(), pa.date64()):
        assert ids_of(pa.array([dt.date(1970, 1, 3)], dtype), "x").tolist() == [2 * day]
    fine = pa.array([1_999], pa.timestamp("ns"))
    assert ids_of(fine, "x").tolist() == [1]


def test_moment_out_of_range_is_one_line() -> None:
    with pytest.raises(InputError, match=r"seen: a timestamp.* does not fit 64-bit microseconds"):
        ids_of(pa.array([2**62], pa.timestamp("s")), "seen")


@pytest.mark.parametrize(
    "array",
    [pa.nulls(3), pa.nulls(3, pa.string()), pa.nulls(3, pa.int8()), pa.nulls(3, pa.bool_())],
    ids=lambda a: str(a.type),
)
def test_all_null(array: pa.Array) -> None:
    assert ids_of(array, "x").tolist() == [NULL_ID] * 3
    ids, codes = unique_ids(array, "x")
    assert ids[codes].tolist() == [NULL_ID] * 3


@pytest.mark.parametrize("dtype", [pa.string(), pa.int32(), pa.null(), pa.bool_()], ids=str)
def test_empty(dtype: pa.DataType) -> None:
    empty = (pa.array([], dtype), pa.chunked_array([], dtype), pa.array([], dtype).slice(0, 0))
    for array in empty:
        assert ids_of(array, "x").shape == (0,)
        assert ids_of(array, "x").dtype == np.int64
        ids, codes = unique_ids(array, "x")
        assert ids[codes].shape == (0,)


def test_many_columns_at_once_equal_each_alone() -> None:
    columns = [
        pa.array(["a", None, "bc"]),
        pa.array([1, 2, 3]),
        pa.array(["x", "y", "x"]).dictionary_encode(),
        pa.array(["a", "b"], pa.large_string()),
        pa.chunked_array([["q"], ["r", None]]),
        pa.array(["d", "e", "f"]).slice(1),
    ]
    names = [f"c{i}" for i in range(len(columns))]
    for together, column in zip(ids_of_columns(columns, names), columns, strict=True):
        assert together.tolist() == ids_of(column, "x").tolist()


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1.5]),
        pa.array([1.0], pa.float32()),
        pa.array([1], pa.decimal128(5, 2)),
        pa.array([1.5]).dictionary_encode(),
    ],
    ids=lambda a: str(a.type),
)
def test_float_as_a_category_is_refused(array: pa.Array) -> None:
    with pytest.raises(InputError, match=r"price: .* cannot be categories .* cast the column"):
        ids_of(array, "price")


def test_lists_and_structs_are_refused() -> None:
    with pytest.raises(InputError, match="tags: a list column"):
        ids_of(pa.array([[1]]), "tags")
    with pytest.raises(InputError, match="x: values of type struct"):
        ids_of(pa.array([{"a": 1}]), "x")
    with pytest.raises(InputError, match="x: values of type time64"):
        ids_of(pa.array([dt.time(1)]), "x")


def test_families() -> None:
    families = {
        "text": [*TEXT_TYPES, pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string())],
        "binary": [*BINARY_TYPES, pa.binary(3)],
        "int": [*INT_TYPES, pa.large_list(pa.int8()), pa.list_(pa.int64(), 4)],
        "float": [pa.float16(), pa.float32(), pa.float64(), pa.decimal128(9, 2)],
        "bool": [pa.bool_()],
        "timestamp": [pa.timestamp("ns", "UTC"), pa.date32(), pa.date64()],
        "null": [pa.null(), pa.list_(pa.null())],
    }
    for family, dtypes in families.items():
        assert {type_family(dtype) for dtype in dtypes} == {family}
    lists = [pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_(pa.int8(), 2)]
    views = [pa.list_view(pa.int8()), pa.large_list_view(pa.int8())]
    assert all(map(is_list, lists + views))
    assert not is_list(pa.string())
    with pytest.raises(InputError, match="c: values of type duration"):
        type_family(pa.duration("s"), "c")
