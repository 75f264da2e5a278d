"""Raw rows with everything that serving will meet and validation rows may lack."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from serving.column_types import joinable
from serving.encode import InputField, is_list, type_family

__all__ = ["stress_rows"]


def stress_rows(rows: pa.Table, inputs: Sequence[InputField]) -> pa.Table:
    """Four parts of the input columns of ``rows`` (B rows): the rows themselves; the rows with
    every second cell null (in a chequered pattern, so that each field is null beside present
    ones); the rows with an id of its own, never seen, in every id cell and list; and one row of
    nulls. (3 B + 1) rows. Columns that are also read as numbers get ids just above their values."""
    columns = list(dict.fromkeys(field.column for field in inputs))
    ids = {field.column for field in inputs if field.kind != "float"}
    numbers = {field.column for field in inputs if field.kind == "float"}
    out = {}
    for place, name in enumerate(columns):
        column = rows.column(name).combine_chunks()
        column = column.cast(_plain(column.type))
        number = np.arange(len(column))
        checkered = column.take(pa.array(number, mask=(number + place) % 2 == 0))
        unseen = _unseen(column, near=name in numbers) if name in ids else column
        parts = [column, checkered, unseen, pa.nulls(1, column.type)]
        out[name] = pa.chunked_array(parts, type=column.type)
    return pa.table(out).combine_chunks()


def _plain(dtype: pa.DataType) -> pa.DataType:
    # A dictionary would not hold the unseen values, and Arrow cannot gather views.
    return joinable(dtype.value_type if pa.types.is_dictionary(dtype) else dtype)


def _unseen(column: pa.Array, near: bool = False) -> pa.Array:
    """As many values of the same type, none of them likely in any log; bools stay. ``near``:
    integers are less than a hundred above those there are."""
    count, dtype = len(column), column.type
    if is_list(dtype):
        return _unseen_lists(count, dtype)
    family = type_family(dtype)
    if family == "text":
        return pa.array([f"\x7fnever seen {i}" for i in range(count)]).cast(dtype)
    if family == "binary" and not pa.types.is_fixed_size_binary(dtype):
        return pa.array([b"\xffnever seen %d" % i for i in range(count)]).cast(dtype)
    if family == "int":
        top = np.iinfo(dtype.to_pandas_dtype()).max
        if near:
            top = min(top, (pc.max(column).as_py() or 0) + 99)
        return pa.array([top - i % 50 for i in range(count)], dtype)
    if pa.types.is_timestamp(dtype):
        return (
            pa.array([datetime(2100, 1, 1, i % 24, tzinfo=UTC) for i in range(count)])
            .cast(pa.timestamp(dtype.unit, "UTC"))
            .cast(dtype)
        )
    return column


def _unseen_lists(count: int, dtype: pa.DataType) -> pa.Array:
    """Lists of one unseen element and a null, every third one empty."""
    element = dtype.value_type
    plain = element.value_type if pa.types.is_dictionary(element) else element
    values = _unseen(pa.nulls(count, plain)).to_pylist()
    if pa.types.is_fixed_size_list(dtype):
        return pa.array([[value] * dtype.list_size for value in values], pa.list_(plain)).cast(
            dtype
        )
    lists = [[] if i % 3 == 2 else [value, None] for i, value in enumerate(values)]
    return pa.array(lists, pa.list_(plain)).cast(dtype)
