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
            lists = field.kind == "ids"
            alike = [entry.name for entry in schema if is_list(entry.type) == lists]
            close = difflib.get_close_matches(field.column, alike, 1)
            remedy = "add it to the file" + (" (recsys histories writes histories)" * lists)
            hint = f"; did you mean {close[0]!r}?" if close else f"; {remedy}"
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
    count = rows.num_rows
    singles = [f for f in inputs if f.kind == "id"]
    lists = [f for f in inputs if f.kind == "ids"]
    flat = [_flattened(_column(rows, f), f.column) for f in lists]
    columns = [*(_column(rows, f) for f in singles), *(values for values, _ in flat)]
    hashed = ids_of_columns(columns, [f.column for f in (*singles, *lists)])  # one call for all

    ids = np.empty((len(singles), count), np.int64)
    for place in range(len(singles)):
        ids[place] = hashed[place]
    floats = _float_columns(rows, [f for f in inputs if f.kind == "float"])
    lengths = np.empty((len(lists), count), np.int64)
    padded = []
    for place, field in enumerate(lists):
        values, lengths[place] = _padded(hashed[len(singles) + place], flat[place][1], field)
        padded.append(torch.from_numpy(values))  # (B, L)
    return Batch(
        _rows_first(ids),  # (B, C)
        _rows_first(floats),  # (B, K)
        padded,
        _rows_first(lengths),  # (B, number of lists)
    )


def _rows_first(columns: np.ndarray) -> Tensor:
    # Filling a (C, B) block and transposing it once is 5 times faster than writing strided columns.
    return torch.from_numpy(np.ascontiguousarray(columns.T))


def _column(rows: pa.RecordBatch | pa.Table, field: InputField) -> Column:
    array = rows.column(field.column)
    if isinstance(array, pa.ChunkedArray) and array.num_chunks == 1:
        return array.chunk(0)
    return array


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


def _flattened(array: Column, name: str) -> Tuple[Column, np.ndarray]:
    """All elements of a list column, and how many each row has (B,) int64; null has none."""
    if pa.types.is_null(array.type):
        return array.slice(0, 0), np.zeros(len(array), np.int64)
    if not is_list(array.type):
        raise InputError(
            f"{name}: {array.type} is not a list column; make it a categorical feature, or store "
            "lists"
        )
    counts = pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64)
    return pc.list_flatten(array), counts  # drops null lists, respects slices


def _padded(
    ids: np.ndarray, counts: np.ndarray, field: InputField
) -> Tuple[np.ndarray, np.ndarray]:
    """``(ids (B, L) int64, lengths (B,) int64)``: the last ``max_length`` of each list."""
    keep = counts if field.max_length is None else np.minimum(counts, field.max_length)
    width = int(keep.max(initial=0))
    if width * len(keep) > MAX_CELLS:
        raise InputError(
            f"{field.column}: the longest list of this batch has {width} elements, too many to pad "
            f"{len(keep)} rows to; set max_length, or score in smaller batches"
        )
    if len(ids) > keep.sum():
        first = np.cumsum(counts) - counts  # of each list, in ids
        place = np.arange(len(ids)) - np.repeat(first, counts)
        ids = ids[place >= np.repeat(counts - keep, counts)]
    out = np.full((len(keep), width), NULL_ID, np.int64)
    out[np.arange(width) < keep[:, None]] = ids
    return out, keep
