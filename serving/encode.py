"""From Arrow to the tensors that a scoring graph takes: one function for training and serving."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import List, Literal, NamedTuple, Sequence, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from serving.errors import InputError
from serving.ids import (
    NULL_ID,
    Column,
    ids_of,
    ids_of_columns,
    is_list,
    microseconds,
    type_family,
    unique_ids,
)

__all__ = [
    "NULL_ID",
    "Batch",
    "InputField",
    "check_schema",
    "encode",
    "ids_of",
    "is_list",
    "type_family",
    "unique_ids",
]

MAX_CELLS = 2**28
"""Cells of one padded list tensor (2 GiB): one absurd list must not take the memory of the host."""


class Batch(NamedTuple):
    """B rows as tensors. The same shape serves all three stages of a row:

    raw (id rule v1 applied: what the exported graph takes) -> encoded (per-field ids and
    normalised floats, by the feature encoder) -> rows (indices into tables, by the id map).

    Shapes, with C id columns, K float columns and one entry of ``lists`` per list field:
    ``ids`` (B, C) int64 (int32 or int64 at the rows stage, where C counts lookups);
    ``floats`` (B, K) float64 raw, float32 after encoding, NaN where missing;
    ``lists[f]`` (B, L_f) int64, at the rows stage (B, L_f, T_f); padded on the right;
    ``lengths`` (B, number of list fields) int64.
    """

    ids: Tensor
    floats: Tensor
    lists: List[Tensor]
    lengths: Tensor


@dataclass(frozen=True)
class InputField:
    """One raw input of a scoring graph, in the order the graph takes it.

    ``kind``: ``id`` fills the next column of ``Batch.ids``, ``float`` of ``Batch.floats``, ``ids``
    the next entry of ``Batch.lists``. ``dtype``: the type family seen in training (``text``,
    ``int``, ``bool``, ``float``, ``binary``, ``timestamp``); for lists that of the elements.
    ``max_length``: keep the last N elements of a list; ``None`` keeps all.
    """

    name: str
    column: str
    kind: Literal["id", "float", "ids"]
    dtype: Literal["text", "int", "bool", "float", "binary", "timestamp"]
    max_length: int | None = None


_NUMBERS = frozenset({"int", "float", "bool"})


def check_schema(schema: pa.Schema, inputs: Sequence[InputField], where: str) -> None:
    """Check that ``schema`` has every input column with the type family seen in training.

    A number is a number for ``float`` inputs (int, float, bool, decimal are interchangeable); for
    ids the family must be the same, as int 17 and text "17" have different ids. All-null columns
    fit everything. Raises `InputError`: one line with ``where`` (the file), column, seen and
    expected type, and the remedy.
    """
    for field in inputs:
        want = f"list of {field.dtype}" if field.kind == "ids" else field.dtype
        places = schema.get_all_field_indices(field.column)
        if not places:
            close = difflib.get_close_matches(field.column, schema.names, 1)
            hint = f"; did you mean {close[0]!r}?" if close else "; add it to the file"
            raise InputError(f"{where}: column {field.column!r} ({want}) is missing{hint}")
        if len(places) > 1:
            raise InputError(
                f"{where}: column {field.column!r} occurs {len(places)} times; rename the others"
            )
        dtype = schema.field(places[0]).type
        if pa.types.is_null(dtype):
            continue
        seen = type_family(dtype, f"{where}: column {field.column!r}")
        ok = seen in (field.dtype, "null") or (
            field.kind == "float" and seen in _NUMBERS and field.dtype in _NUMBERS
        )
        if not ok or is_list(dtype) != (field.kind == "ids"):
            raise InputError(
                f"{where}: column {field.column!r} is {dtype}, but the model was trained on "
                f"{want}; cast the column to {want} in the file"
            )


def encode(rows: pa.RecordBatch | pa.Table, inputs: Sequence[InputField]) -> Batch:
    """Raw `Batch` of ``rows``: ids by rule v1, floats as float64 with NaN for null (timestamps as
    seconds), lists padded on the right to the longest of this batch (after keeping the last
    ``max_length`` elements), a null list being empty. Extra columns are ignored.

    Check the schema once with `check_schema` before; wrong types still raise `InputError`.
    """
    ids = [f for f in inputs if f.kind == "id"]
    floats = [f for f in inputs if f.kind == "float"]
    lists = [f for f in inputs if f.kind == "ids"]
    padded = [_padded(rows, field) for field in lists]
    lengths = np.empty((len(lists), rows.num_rows), np.int64)
    for place, (_, length) in enumerate(padded):
        lengths[place] = length
    return Batch(
        _rows_first(_id_columns(rows, ids)),  # (B, C)
        _rows_first(_float_columns(rows, floats)),  # (B, K)
        [torch.from_numpy(values) for values, _ in padded],  # each (B, L)
        _rows_first(lengths),  # (B, lists)
    )


def _rows_first(columns: np.ndarray) -> Tensor:
    # Filling a (C, B) block and transposing it once is 5 times faster than writing strided columns.
    return torch.from_numpy(np.ascontiguousarray(columns.T))


def _column(rows: pa.RecordBatch | pa.Table, field: InputField) -> Column:
    array = rows.column(field.column)
    if isinstance(array, pa.ChunkedArray) and array.num_chunks == 1:
        return array.chunk(0)
    return array


def _id_columns(rows: pa.RecordBatch | pa.Table, fields: Sequence[InputField]) -> np.ndarray:
    out = np.empty((len(fields), rows.num_rows), np.int64)
    names = [field.column for field in fields]
    for place, ids in enumerate(ids_of_columns([_column(rows, f) for f in fields], names)):
        out[place] = ids
    return out


def _float_columns(rows: pa.RecordBatch | pa.Table, fields: Sequence[InputField]) -> np.ndarray:
    out = np.empty((len(fields), rows.num_rows), np.float64)
    for place, field in enumerate(fields):
        out[place] = floats_of(_column(rows, field), field.column)
    return out


def floats_of(array: Column, name: str) -> np.ndarray:
    """Numbers of a column: (N,) float64, NaN for null, bools 0 and 1, timestamps and dates in
    seconds since 1970-01-01. Text and lists raise `InputError` naming ``name``."""
    if isinstance(array, pa.ChunkedArray):
        parts = [floats_of(chunk, name) for chunk in array.chunks]
        return np.concatenate(parts) if parts else np.empty(0)
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    family = type_family(array.type, name)
    if is_list(array.type) or family in ("text", "binary"):
        raise InputError(
            f"{name}: {array.type} is not a number; cast the column to a numeric type, or make it "
            "a categorical feature"
        )
    if family == "timestamp":
        array = microseconds(array, name)
    if array.type != pa.float64():
        array = array.cast(pa.float64(), safe=False)
    values = array.to_numpy(zero_copy_only=False)
    return values / 1e6 if family == "timestamp" else values


def _padded(rows: pa.RecordBatch | pa.Table, field: InputField) -> Tuple[np.ndarray, np.ndarray]:
    """``(ids (B, L) int64, lengths (B,) int64)`` of one list column."""
    array = _column(rows, field)
    if pa.types.is_null(array.type):
        empty = np.zeros(rows.num_rows, np.int64)
        return np.empty((rows.num_rows, 0), np.int64), empty
    if not is_list(array.type):
        raise InputError(
            f"{field.column}: {array.type} is not a list column; make it a categorical feature, "
            "or store lists"
        )
    counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64)
    ids = ids_of(pc.list_flatten(array), field.column)  # null lists dropped, slices respected
    keep = counts if field.max_length is None else np.minimum(counts, field.max_length)
    width = int(keep.max(initial=0))
    if width * len(keep) > MAX_CELLS:
        raise InputError(
            f"{field.column}: the longest list of this batch has {width} elements, too many to pad "
            f"{len(keep)} rows to; set max_length, or score in smaller batches"
        )
    if width and len(ids) > keep.sum():
        row = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
        ids = ids[place >= (counts - keep)[row]]
    out = np.full((len(keep), width), NULL_ID, np.int64)
    if width:
        out[np.arange(width) < keep[:, None]] = ids
    return out, keep
