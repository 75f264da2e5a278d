"""Dicts give the same batches as Arrow, or name column and row."""

import datetime as dt
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.encode import NULL_ID, InputField, encode
from serving.errors import InputError
from serving.rows import from_dicts

INPUTS = [
    InputField("t", "t", "id", "text"),
    InputField("i", "i", "id", "int"),
    InputField("b", "b", "id", "bool"),
    InputField("y", "y", "id", "binary"),
    InputField("m", "m", "id", "timestamp"),
    InputField("x", "x", "float", "float"),
    InputField("h", "h", "ids", "text", 3),
]
ROW = st.fixed_dictionaries(
    {},
    optional={
        "t": st.none() | st.text(max_size=8),
        "i": st.none() | st.integers(-(2**63), 2**63 - 1),
        "b": st.none() | st.booleans(),
        "y": st.none() | st.binary(max_size=4),
        "m": st.none() | st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1)),
        "x": st.none() | st.floats(allow_nan=False),
        "h": st.none() | st.lists(st.none() | st.text(max_size=3), max_size=5),
        "other": st.just(object()),
    },
).filter(lambda row: not row or row.keys() != {"other"})
SCHEMA = pa.schema(
    {
        "t": pa.string(),
        "i": pa.int64(),
        "b": pa.bool_(),
        "y": pa.binary(),
        "m": pa.timestamp("us"),
        "x": pa.float64(),
        "h": pa.list_(pa.string()),
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, max_size=6))
def test_dicts_equal_arrow(rows: list[dict[str, object]]) -> None:
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    expected = encode(pa.table(columns, schema=SCHEMA), INPUTS)
    got = encode(from_dicts(rows, INPUTS), INPUTS)
    assert torch.equal(got.ids, expected.ids)
    assert torch.equal(torch.nan_to_num(got.floats), torch.nan_to_num(expected.floats))
    assert torch.equal(got.lists[0], expected.lists[0])
    assert torch.equal(got.lengths, expected.lengths)


def ids(**row: object) -> list[int]:
    return encode(from_dicts([row], INPUTS), INPUTS).ids[0].tolist()


def test_missing_keys_are_null() -> None:
    batch = encode(from_dicts([{}], INPUTS), INPUTS)
    assert batch.ids.tolist() == [[NULL_ID] * 5]
    assert torch.isnan(batch.floats).all()
    assert batch.lengths.tolist() == [[0]]


def test_numpy_pandas_and_calendar_values() -> None:
    assert ids(i=np.int32(5))[1] == 5
    assert ids(i=2**64 - 1)[1] == -1  # uint64 with all bits set
    assert ids(b=np.True_)[2] == 1
    noon = 1_577_880_000_000_000  # 2020-01-01 12:00 UTC
    zone = dt.timezone(dt.timedelta(hours=2))
    moments = [
        dt.datetime(2020, 1, 1, 12),
        dt.datetime(2020, 1, 1, 14, tzinfo=zone),
        np.datetime64("2020-01-01T12:00:00", "ns"),
        pd.Timestamp("2020-01-01 12:00"),
    ]
    assert [ids(m=moment)[4] for moment in moments] == [noon] * 4
    assert ids(m=dt.date(2020, 1, 1))[4] == noon - 12 * 3600 * 10**6
    numbers = from_dicts([{"x": v} for v in (np.float32(1.5), 2, True, np.bool_(False))], INPUTS)
    assert encode(numbers, INPUTS).floats[:, 0].tolist() == [1.5, 2.0, 1.0, 0.0]
    exact = from_dicts([{"x": decimal.Decimal("1.25")}], INPUTS)
    assert encode(exact, INPUTS).floats[0].tolist() == [1.25]
    for missing in (pd.NaT, np.datetime64("NaT")):
        assert ids(m=missing)[4] == NULL_ID
    lists = from_dicts([{"h": ("a",)}, {"h": np.array(["a"])}], INPUTS)
    assert encode(lists, INPUTS).lengths.tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"t": 17}, "column 't', row 1: 17 is int, but the model was trained on text"),
        ({"i": "17"}, "column 'i', row 1: '17' is str, but the model was trained on int"),
        ({"i": True}, "column 'i', row 1: True is bool, but the model was trained on int"),
        ({"i": 1.0}, "column 'i', row 1: 1.0 is float, but the model was trained on int"),
        ({"b": 1}, "column 'b', row 1: 1 is int, but the model was trained on bool"),
        ({"x": "1"}, "column 'x', row 1: '1' is str, but the model was trained on float"),
        ({"h": "abc"}, "column 'h', row 1: 'abc' is str, but .* trained on lists of text"),
        ({"h": ["a", 3]}, "column 'h', row 1: 3 is int, but the model was trained on text"),
        ({"m": 5}, "column 'm', row 1: 5 is int, but the model was trained on timestamp"),
        ({"i": 2**64}, "column 'i', value 1: 18446744073709551616 does not fit"),
        ({"t": "\ud800"}, "column 't', value 1: .* does not fit"),
    ],
)
def test_a_wrong_value_is_named(row: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        from_dicts([{"t": "fine"}, row], INPUTS)
    assert "\n" not in str(caught.value)


def test_what_pandas_calls_missing_is_null() -> None:
    frame = pd.DataFrame({"t": ["a", None], "i": [1, 2], "b": [True, None], "m": [pd.NaT, pd.NaT]})
    frame = frame.assign(h=[["x", np.nan], np.nan], i=frame["i"].astype("Int64"))
    frame.loc[1, ["t", "i"]] = [np.nan, pd.NA]
    found = encode(from_dicts(frame.to_dict("records"), INPUTS), INPUTS)
    plain = [{"t": "a", "i": 1, "b": True, "h": ["x", None]}, {"t": None}]
    want = encode(from_dicts(plain, INPUTS), INPUTS)
    assert torch.equal(found.ids, want.ids)
    assert torch.equal(found.lists[0], want.lists[0])
    assert torch.equal(found.lengths, want.lengths)


def test_a_row_without_any_known_key_is_refused() -> None:
    with pytest.raises(InputError, match="row 1 has the keys T, but the model reads b, h, i, m, t"):
        from_dicts([{"t": "a", "more": 1}, {"T": "a"}], INPUTS)


def test_rows_must_be_dicts() -> None:
    with pytest.raises(InputError, match="row 1 is int; give each row as a dict"):
        from_dicts([{}, 3], INPUTS)  # type: ignore[list-item]
