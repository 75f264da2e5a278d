"""Id rule v1: what the 64-bit id of a raw value is. Recorded in every bundle; never changed.

===================  ==========================================================================
value                id (int64)
===================  ==========================================================================
text                 xxh64, seed 0, of the UTF-8 bytes, its 64 bits read as int64
binary               the same of the bytes
integer              itself (uint64: its 64 bits read as int64)
bool                 0 or 1
timestamp, date      microseconds since 1970-01-01 (UTC if zoned), finer digits cut off; the same
                     moment has the same id whatever unit the file stores
null                 `NULL_ID`
float, decimal       refused: rounding would make ids of one value differ
===================  ==========================================================================

The value decides, not its encoding: dictionary, large, view, chunked and sliced arrays of equal
values have equal ids. Salting and reduction to table rows happen later, in the scoring graph.
"""

from __future__ import annotations

from functools import cache
from typing import Callable, Dict, List, Sequence, Tuple, TypeAlias

import numpy as np
import polars as pl
import polars_hash as plh
import pyarrow as pa
import pyarrow.compute as pc

from serving.errors import InputError

__all__ = [
    "ID_RULE",
    "NULL_ID",
    "ids_of",
    "ids_of_columns",
    "is_list",
    "microseconds",
    "type_family",
    "unique_ids",
]

ID_RULE = 1
"""Version of the rule in this file, as manifests record it."""

NULL_ID = -(2**63)
"""The id of null under id rule v1 (also the padding of lists)."""

Column: TypeAlias = "pa.Array | pa.ChunkedArray"

_HASH = plh.col("x").nchash.xxhash64().reinterpret(signed=True).fill_null(NULL_ID)

_LIST_CHECKS: Tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_FAMILY_CHECKS: Dict[str, Tuple[Callable[[pa.DataType], bool], ...]] = {
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "int": (pa.types.is_integer,),
    "float": (pa.types.is_floating, pa.types.is_decimal),
    "bool": (pa.types.is_boolean,),
    "timestamp": (pa.types.is_timestamp, pa.types.is_date),
    "binary": (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    ),
    "null": (pa.types.is_null,),
}


@cache  # the checks cost more than the work they guard when a call has one row
def is_list(dtype: pa.DataType) -> bool:
    """True for every Arrow list type (list, large, fixed size, view)."""
    return any(check(dtype) for check in _LIST_CHECKS)


def type_family(dtype: pa.DataType, name: str = "column") -> str:
    """``text``, ``int``, ``bool``, ``float``, ``binary``, ``timestamp``, or ``null`` (no value at
    all, fits every family). Dictionaries have the family of their values, lists that of their
    elements. Any other type is an `InputError` naming ``name``."""
    family = _family(dtype)
    if family is None:
        raise InputError(
            f"{name}: values of type {dtype} cannot be an input; cast them to text, integers, "
            "floats or timestamps"
        )
    return family


@cache
def _family(dtype: pa.DataType) -> str | None:
    if pa.types.is_dictionary(dtype) or is_list(dtype):
        return _family(dtype.value_type)
    for family, checks in _FAMILY_CHECKS.items():
        if any(check(dtype) for check in checks):
            return family
    return None


def ids_of(array: Column, name: str) -> np.ndarray:
    """Ids of all values of a column: (N,) int64, maybe a read-only view. Not for lists.

    Dictionary arrays are hashed on their dictionary only, then gathered. Raises `InputError`
    naming ``name`` where the rule gives no id (floats, nested values).
    """
    return ids_of_columns([array], [name])[0]


def ids_of_columns(columns: Sequence[Column], names: Sequence[str]) -> List[np.ndarray]:
    """`ids_of` of many columns; their text is hashed together, which is what makes a call with few
    rows cheap (hashing costs about 30 us a call and 8 ns a value)."""
    chunks: List[Tuple[int, pa.Array]] = []
    for place, column in enumerate(columns):
        if isinstance(column, pa.ChunkedArray):
            chunks.extend((place, _slim(chunk)) for chunk in column.chunks)
        else:
            chunks.append((place, _slim(column)))
    values = [c.dictionary if isinstance(c, pa.DictionaryArray) else c for _, c in chunks]
    hashed = iter(_hash_all([v for v in values if _is_bytes(v.type)]))
    parts: List[List[np.ndarray]] = [[] for _ in columns]
    for (place, chunk), value in zip(chunks, values, strict=True):
        ids = next(hashed) if _is_bytes(value.type) else _value_ids(value, names[place])
        if isinstance(chunk, pa.DictionaryArray):
            ids, codes = _with_codes(ids, chunk)
            ids = ids[codes]
        parts[place].append(ids)
    return [_join(part) for part in parts]


def unique_ids(array: Column, name: str) -> Tuple[np.ndarray, np.ndarray]:
    """``(ids (U,) int64, codes (N,) int32)`` with ``ids[codes] == ids_of(array)``.

    Lets work that depends on the id alone run U instead of N times. Nearly free for a dictionary
    column, whose ids may then hold repeated or unused entries; else ids are distinct and in order
    of first appearance.
    """
    if isinstance(array, pa.ChunkedArray):
        if pa.types.is_dictionary(array.type):
            array = array.unify_dictionaries()
        array = array.combine_chunks()
    if isinstance(array, pa.DictionaryArray) and len(array.dictionary) <= len(array):
        return _with_codes(ids_of(array.dictionary, name), array)
    encoded = pa.array(ids_of(array, name)).dictionary_encode()
    return encoded.dictionary.to_numpy(), encoded.indices.to_numpy()


def _slim(array: pa.Array) -> pa.Array:
    # A small slice of a big dictionary: hashing the slice is cheaper than hashing the dictionary.
    big = isinstance(array, pa.DictionaryArray) and len(array.dictionary) > 4 * len(array)
    return array.dictionary_decode() if big else array


def _with_codes(ids: np.ndarray, array: pa.DictionaryArray) -> Tuple[np.ndarray, np.ndarray]:
    codes = array.indices.cast(pa.int32())
    if codes.null_count:
        codes = pc.fill_null(codes, len(ids))
        ids = np.append(ids, NULL_ID)
    return ids, codes.to_numpy()


def _join(parts: List[np.ndarray]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _is_bytes(dtype: pa.DataType) -> bool:
    return not is_list(dtype) and _family(dtype) in ("text", "binary")


def _hash_all(arrays: Sequence[pa.Array]) -> List[np.ndarray]:
    """Ids of plain text or binary arrays, each (N_i,) int64; one call for each Arrow type."""
    groups: Dict[pa.DataType, List[int]] = {}
    for i, array in enumerate(arrays):
        groups.setdefault(array.type, []).append(i)
    out: List[np.ndarray] = [np.empty(0, np.int64)] * len(arrays)
    for places in groups.values():
        group = [arrays[i] for i in places]
        # Joining copies; past some MB the copy buys nothing, and 32-bit offsets could overflow.
        if len(group) > 1 and sum(a.nbytes for a in group) < 2**24:
            ids, start = _hash(pa.concat_arrays(group)), 0
            for i in places:
                out[i] = ids[start : start + len(arrays[i])]
                start += len(arrays[i])
        else:
            for i in places:
                out[i] = _hash(arrays[i])
    return out


def _hash(array: pa.Array) -> np.ndarray:
    # polars-hash hashes the bytes of text and of binary columns alike.
    return pl.Series("x", array).to_frame().select(_HASH).to_series().to_numpy()


def _value_ids(array: pa.Array, name: str) -> np.ndarray:
    dtype = array.type
    if is_list(dtype):
        raise InputError(
            f"{name}: a list column ({dtype}) cannot be one category; make it a bag or a sequence"
        )
    family = type_family(dtype, name)
    if family == "null":
        return np.full(len(array), NULL_ID, np.int64)
    if family == "float":
        raise InputError(
            f"{name}: {dtype} values cannot be categories (rounding would change their ids); "
            "cast the column to integers (pandas: Int64, which has nulls) or text, or make it a "
            "numeric feature"
        )
    if family == "timestamp":
        whole = microseconds(array, name)
    elif pa.types.is_uint64(dtype):
        whole = array.view(pa.int64())
    else:
        whole = array.cast(pa.int64())
    if whole.null_count:
        whole = pc.fill_null(whole, NULL_ID)
    return whole.to_numpy()


def microseconds(array: pa.Array, name: str) -> pa.Array:
    """A timestamp or date array as int64 microseconds since 1970-01-01, nulls kept."""
    zone = array.type.tz if pa.types.is_timestamp(array.type) else None
    try:
        return pc.cast(
            array,
            options=pc.CastOptions(pa.timestamp("us", zone), allow_time_truncate=True),
        ).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{name}: a {array.type} value does not fit 64-bit microseconds ({error}); "
            "replace the out-of-range moment by null"
        ) from error
