"""Python rows to Arrow, with the types a model was trained on. For calls with few rows."""

from __future__ import annotations

import datetime
import decimal
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.encode import InputField, is_list
from serving.errors import InputError

__all__ = ["from_dicts", "whole_numbers"]

Row = Mapping[str, Any]
Types = Tuple[type, ...]

_NUMBER: Types = (int, float, bool, np.integer, np.floating, np.bool_, decimal.Decimal)
_ACCEPTS: Dict[str, Types] = {
    "text": (str,),
    "int": (int, np.integer),
    "bool": (bool, np.bool_),
    "float": _NUMBER,
    "binary": (bytes,),
    "timestamp": (datetime.datetime, datetime.date, np.datetime64),
}
_ARROW: Dict[str, pa.DataType] = {
    "text": pa.large_string(),
    "int": pa.int64(),
    "bool": pa.bool_(),
    "float": pa.float64(),
    "binary": pa.large_binary(),
    "timestamp": pa.timestamp("us"),
}
_EXACT: Dict[str, frozenset[type]] = {
    family: frozenset({*types, type(None)}) for family, types in _ACCEPTS.items()
}

EXACT = 2.0**53
"""Beyond this a float64 no longer holds every integer."""

_UNFIT = (pa.ArrowException, OverflowError, UnicodeEncodeError)


def from_dicts(rows: Sequence[Row], inputs: Sequence[InputField]) -> pa.RecordBatch:
    """One Arrow batch of the input columns, as `serving.encode.encode` takes it.

    A missing key, None, NaN, pandas' NA and NaT are null; other keys are ignored, but a row that
    has no key of the model's at all is an `InputError`: its keys are misspelt. So is a value of
    another type than the model was trained on (text for an integer, a bool for an integer, ...),
    named by column and row: int 17 and text "17" have different ids. Times without a zone are UTC.
    """
    columns = {field.column for field in inputs}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"row {number} is {type(row).__name__}; give each row as a dict")
        if row and columns.isdisjoint(row):
            keys, known = (", ".join(sorted(map(str, names))) for names in (row, columns))
            raise InputError(f"row {number} has the keys {keys}, but the model reads {known}")
    arrays: Dict[str, pa.Array] = {}
    for field in inputs:
        if field.column not in arrays:
            values = [row.get(field.column) for row in rows]
            convert = _lists if field.kind == "ids" else _scalars
            family = "float" if _takes_numbers(field) else field.dtype
            arrays[field.column] = convert(values, family, field.column)
    if not arrays:
        return pa.table({"": pa.nulls(len(rows))}).to_batches()[0]
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def whole_numbers(array: pa.Array) -> pa.Array:
    """Floats, or lists of them, as integers, where all of them are whole and exact: pandas has
    integers beside nulls as floats. Any other array as it is."""
    nested = is_list(array.type)
    if isinstance(array, pa.ChunkedArray):  # of frames that hold Arrow's own arrays
        array = array.combine_chunks()
    values = pc.list_flatten(array) if nested else array
    if not pa.types.is_floating(values.type):
        return array
    numbers = pc.cast(values, pa.float64()).to_numpy(zero_copy_only=False)
    absent = np.isnan(numbers)
    if not (absent | (np.abs(numbers) < EXACT) & (np.floor(numbers) == numbers)).all():
        return array
    whole = pa.array(np.where(absent, 0, numbers).astype(np.int64), mask=absent)
    if not nested:
        return whole
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    ends = pa.array(np.concatenate([[0], lengths]).cumsum(), pa.int64())
    return pa.LargeListArray.from_arrays(ends, whole, mask=pc.is_null(array))


def _takes_numbers(field: InputField) -> bool:
    return field.kind == "float" and field.dtype != "timestamp"


def _scalars(values: List[Any], family: str, column: str) -> pa.Array:
    if not _EXACT[family].issuperset(map(type, values)):  # the usual case costs one pass
        values = [None if _is_absent(value) else value for value in values]
        for number, value in enumerate(values):
            _check(value, family, column, number)
    try:
        if family == "float":
            return pa.array(np.array(values, np.float64))  # None becomes NaN
        return _array(values, family)
    except _UNFIT as error:
        raise _unfit(values, family, column, error) from None


def _array(values: List[Any], family: str) -> pa.Array:
    if family == "timestamp":
        return pa.array([_moment(v) for v in values], _ARROW[family])
    if family == "int" and any(v is not None and v >= 2**63 for v in values):
        return pa.array(values, pa.uint64())
    return pa.array(values, _ARROW[family])


def _moment(value: Any) -> Any:
    if value != value:  # NaT
        return None
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]").item()
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return datetime.datetime(value.year, value.month, value.day)
    return value


def _is_absent(value: Any) -> bool:
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    return type(value).__name__ in ("NAType", "NaTType")  # pandas need not be here


def _lists(values: List[Any], family: str, column: str) -> pa.Array:
    values = [None if _is_absent(value) else value for value in values]
    for number, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, (list, tuple, np.ndarray)):
            raise InputError(
                f"column {column!r}, row {number}: {value!r} is {type(value).__name__}, but the "
                f"model was trained on lists of {family}; give a list"
            )
        for element in value:
            _check(element, family, column, number)
    flat = [element for value in values if value is not None for element in value]
    ends = np.cumsum([0] + [0 if value is None else len(value) for value in values])
    return pa.LargeListArray.from_arrays(ends, _scalars(flat, family, column))


def _check(value: Any, family: str, column: str, number: int) -> None:
    if value is None or _is_absent(value):
        return
    wrong_bool = isinstance(value, bool) and family == "int"
    if wrong_bool or not isinstance(value, _ACCEPTS[family]):
        raise InputError(
            f"column {column!r}, row {number}: {value!r} is {type(value).__name__}, but the model "
            f"was trained on {family}; convert the value, or leave the key out for null"
        )


def _unfit(values: List[Any], family: str, column: str, error: Exception) -> InputError:
    """The error for values of the right type that 64 bits cannot hold; finds the first one."""
    for number, value in enumerate(values):
        try:
            _array([value], family)
        except _UNFIT:
            return InputError(
                f"column {column!r}, value {number}: {value!r} does not fit {_ARROW[family]}; "
                "leave the key out for null"
            )
    return InputError(f"column {column!r}: no one type holds all values of this call ({error})")
