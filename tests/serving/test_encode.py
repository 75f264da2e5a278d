"""Arrow rows to raw batches, and the schema check before."""

import datetime as dt
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import encode as module
from serving.encode import NULL_ID, Batch, InputField, check_schema, encode, ids_of
from serving.errors import InputError


def field(column: str, kind: str, dtype: str, max_length: int | None = None) -> InputField:
    return InputField(column, column, kind, dtype, max_length)  # type: ignore[arg-type]


def equal(a: Batch, b: Batch) -> bool:
    pairs = [(a.ids, b.ids), (a.floats, b.floats), (a.lengths, b.lengths)]
    pairs += list(zip(a.lists, b.lists, strict=True))
    return all(
        x.dtype == y.dtype and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)
        for x, y in pairs
    )


def test_layout_by_hand() -> None:
    rows = pa.table(
        {
            "h": pa.array([[1, 2, 3], None, [], [4, None]], pa.list_(pa.int64())),
            "x": pa.array([0.5, None, 2.0, -1.0], pa.float32()),
            "b": pa.array([7, 8, None, 9], pa.int16()),
            "a": [1, None, 3, 4],
            "unused": ["p", "q", "r", "s"],
        }
    )
    inputs = [
        field("a", "id", "int"),
        field("h", "ids", "int", 2),
        field("x", "float", "float"),
        field("b", "id", "int"),
    ]
    for given_rows in (rows, rows.to_batches()[0], pa.concat_tables([rows[:1], rows[1:]])):
        batch = encode(given_rows, inputs)
        assert batch.ids.tolist() == [[1, 7], [NULL_ID, 8], [3, NULL_ID], [4, 9]]
        assert batch.ids.is_contiguous()
        assert batch.floats.dtype == torch.float64
        assert batch.floats[:, 0].tolist()[::2] == [0.5, 2.0]
        assert math.isnan(batch.floats[1, 0])
        assert batch.lists[0].tolist() == [
            [2, 3],
            [NULL_ID, NULL_ID],
            [NULL_ID, NULL_ID],
            [4, NULL_ID],
        ]
        assert batch.lengths.tolist() == [[2], [0], [0], [2]]


@pytest.mark.parametrize("rows", [0, 3])
def test_no_inputs_and_no_rows(rows: int) -> None:
    table = pa.table({"a": pa.array([1] * rows, pa.int64()), "h": pa.array([[]] * rows)})
    batch = encode(table, [])
    assert [tuple(t.shape) for t in (batch.ids, batch.floats, batch.lengths)] == [(rows, 0)] * 3
    batch = encode(table, [field("h", "ids", "int")])  # list<null>
    assert tuple(batch.lists[0].shape) == (rows, 0)
    assert batch.lengths.tolist() == [[0]] * rows


LIST_TYPES = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view]
ELEMENTS = st.none() | st.text(max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.none() | st.lists(ELEMENTS, max_size=6), max_size=12),
    st.none() | st.integers(1, 7),
    st.data(),
)
def test_lists_keep_their_last_elements(
    values: list[list[str | None] | None], longest: int | None, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(values)))
    kept = [(value or [])[-longest if longest else 0 :] for value in values[start:]]
    width = max(map(len, kept), default=0)
    inputs = [field("h", "ids", "text", longest)]
    for make in LIST_TYPES:
        array = pa.array(values, make(pa.string())).slice(start)
        batch = encode(pa.table({"h": array}), inputs)
        assert batch.lengths[:, 0].tolist() == [len(row) for row in kept]
        assert tuple(batch.lists[0].shape) == (len(kept), width)
        for row, ids in zip(kept, batch.lists[0].tolist(), strict=True):
            expected = ids_of(pa.array(row, pa.string()), "h").tolist()
            assert ids == expected + [NULL_ID] * (width - len(row))


def test_fixed_size_lists_and_lists_of_dictionaries() -> None:
    fixed = pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2))
    coded = pa.array([["a", "b"], None, ["b"]]).cast(
        pa.list_(pa.dictionary(pa.int32(), pa.string()))
    )
    batch = encode(
        pa.table({"f": fixed, "c": coded}).slice(1),
        [field("f", "ids", "int"), field("c", "ids", "text")],
    )
    assert batch.lists[0].tolist() == [[NULL_ID] * 2, [3, 4]]
    assert batch.lists[1].tolist() == [[NULL_ID], ids_of(pa.array(["b"]), "c").tolist()]
    assert batch.lengths.tolist() == [[0, 0], [2, 1]]


def test_an_absurd_list_is_refused_before_it_takes_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_CELLS", 10)
    rows = pa.table({"h": [[1] * 6, [1]]})
    with pytest.raises(InputError, match="h: the longest list of this batch has 6 elements"):
        encode(rows, [field("h", "ids", "int")])
    assert encode(rows, [field("h", "ids", "int", 5)]).lists[0].shape == (2, 5)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1, None], pa.uint8()), 1.0),
        (pa.array([2**60 + 1, None]), float(2**60)),
        (pa.array([2**64 - 1, None], pa.uint64()), float(2**64)),
        (pa.array([True, None]), 1.0),
        (pa.array([1.5, None], pa.float16()), 1.5),
        (pa.array([math.inf, math.nan]), math.inf),
        (pa.array([Decimal("12.25"), None]), 12.25),
        (pa.array([0.25, None]).dictionary_encode(), 0.25),
        (pa.array([1500, None], pa.timestamp("ms")), 1.5),
        (pa.array([dt.date(1970, 1, 2), None]), 86400.0),
        (pa.chunked_array([[3], [None]]), 3.0),
    ],
    ids=lambda v: str(getattr(v, "type", "")),
)
def test_floats(array: pa.Array, expected: float) -> None:
    batch = encode(pa.table({"x": array}), [field("x", "float", "float")])
    assert batch.floats[0, 0].item() == expected
    assert math.isnan(batch.floats[1, 0])


def test_all_null_float_and_text_as_float() -> None:
    batch = encode(pa.table({"x": pa.nulls(2)}), [field("x", "float", "float")])
    assert torch.isnan(batch.floats).all()
    with pytest.raises(InputError, match="x: string is not a number"):
        encode(pa.table({"x": ["1"]}), [field("x", "float", "float")])
    with pytest.raises(InputError, match="x: int64 is not a list column"):
        encode(pa.table({"x": [1]}), [field("x", "ids", "int")])


def test_rows_are_independent_of_their_batch() -> None:
    rng = np.random.default_rng(0)
    rows = pa.table(
        {
            "t": pa.array([f"v{i}" for i in rng.integers(0, 9, 40)]).dictionary_encode(),
            "x": rng.random(40),
            "i": rng.integers(-5, 5, 40),
        }
    )
    inputs = [field("t", "id", "text"), field("x", "float", "float"), field("i", "id", "int")]
    whole = encode(rows, inputs)
    parts = [encode(rows.slice(i, 7), inputs) for i in range(0, 40, 7)]
    joined = Batch(
        torch.cat([p.ids for p in parts]),
        torch.cat([p.floats for p in parts]),
        [],
        torch.cat([p.lengths for p in parts]),
    )
    assert equal(whole, joined)


INPUTS = [
    field("user", "id", "text"),
    field("item", "id", "int"),
    field("price", "float", "float"),
    field("history", "ids", "int", 5),
]
GOOD = {
    "user": pa.dictionary(pa.int8(), pa.large_string()),
    "item": pa.uint8(),
    "price": pa.int32(),
    "history": pa.large_list(pa.int16()),
}


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        ("item", pa.null()),
        ("history", pa.null()),
        ("history", pa.list_(pa.null())),
        ("price", pa.bool_()),
        ("price", pa.decimal128(5, 1)),
    ],
)
def test_schema_that_fits(column: str, dtype: pa.DataType) -> None:
    check_schema(pa.schema({**GOOD, column: dtype, "extra": pa.float64()}), INPUTS, "f.parquet")


@pytest.mark.parametrize(
    ("column", "dtype", "message"),
    [
        ("user", pa.int64(), "column 'user' is int64, but the model was trained on text; cast"),
        ("item", pa.string(), "column 'item' is string, but the model was trained on int; cast"),
        ("item", pa.float64(), "column 'item' is double, but the model was trained on int"),
        ("item", pa.bool_(), "column 'item' is bool, but the model was trained on int"),
        ("user", pa.binary(), "column 'user' is binary, but the model was trained on text"),
        ("price", pa.timestamp("s"), r"column 'price' is timestamp\[s\], but the model was .* flo"),
        ("history", pa.int64(), "column 'history' is int64, but the .* trained on list of int"),
        ("item", pa.list_(pa.int64()), "column 'item' is list<.*>, but the model was trained on i"),
        (
            "history",
            pa.list_(pa.string()),
            "column 'history' is list<.*string>, but .* list of int",
        ),
        ("user", pa.struct([]), r"column 'user': values of type struct<> cannot be an input"),
    ],
)
def test_schema_of_another_type(column: str, dtype: pa.DataType, message: str) -> None:
    with pytest.raises(InputError, match=rf"^f.parquet: {message}") as caught:
        check_schema(pa.schema({**GOOD, column: dtype}), INPUTS, "f.parquet")
    assert "\n" not in str(caught.value)


def test_schema_with_a_missing_or_repeated_column() -> None:
    schema = pa.schema({("usr" if name == "user" else name): t for name, t in GOOD.items()})
    with pytest.raises(
        InputError, match=r"column 'user' \(text\) is missing; did you mean 'usr'\?"
    ):
        check_schema(schema, INPUTS, "f.parquet")
    history = [InputField("liked", "liked", "ids", "text")]
    with pytest.raises(
        InputError, match=r"'liked' \(list of text\) is missing; add it .*histories"
    ):
        check_schema(pa.schema({"like": pa.string()}), history, "f.parquet")
    with pytest.raises(InputError, match="column 'item' occurs 2 times"):
        check_schema(pa.schema([*GOOD.items(), ("item", pa.int8())]), INPUTS, "f.parquet")
