"""Order statistics of a log in bounded memory: time thresholds, and the last rows of each group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.types import InputError
from serving.encode import NULL_ID, ids_of, is_list, type_family
from serving.parquet import Source

BINS = 2**16
CHUNK_ROWS = 2**20


def sort_keys(array: pa.Array, name: str) -> np.ndarray:
    """int64 keys in the order of a time column (timestamp, date, int, float, or text such as
    2026-11-30 or 2026-11-30T12:00:00Z, as the folders of Hive are called), (N,).

    Raises `InputError` for other types and text, nulls and NaN: such rows have no place in time.
    """
    family = type_family(array.type, name)
    if family not in ("timestamp", "int", "float", "text") or is_list(array.type):
        raise InputError(
            f"timestamp column {name!r} is {array.type}; cast it to a timestamp or a number"
        )
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        raise InputError(f"timestamp column {name!r} has null values; drop or fill those rows")
    if family == "text":
        array = _times(array, name)
    if family == "float":
        values = pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if np.isnan(values).any():
            raise InputError(f"timestamp column {name!r} has NaN values; drop or fill those rows")
        bits = (values + 0.0).view(np.int64)  # + 0.0: one zero
        return np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)
    if pa.types.is_uint64(array.type):
        return (array.to_numpy() ^ np.uint64(2**63)).view(np.int64)
    if pa.types.is_date32(array.type):
        array = array.cast(pa.int32())
    return array.cast(pa.int64()).to_numpy(zero_copy_only=False)


def _times(text: pa.Array, name: str) -> pa.Array:
    reasons = []
    kinds = [pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC")]
    for kind in kinds:  # without and with a zone
        try:
            return text.cast(kind).cast(pa.timestamp("us"), safe=False)
        except pa.ArrowInvalid as error:
            reasons.append(str(error).partition(" as a scalar")[0])
    raise InputError(
        f"timestamp column {name!r} is text that is no time by ISO 8601, such as 2026-11-30 "
        f"({reasons[0]}); cast it to a timestamp or a number"
    )


def open_time_bounds(source: Source, column: str, shares: tuple[float, float]) -> tuple[int, int]:
    """Smallest sort keys of the last ``share`` of the rows, for both shares; exact.

    A share of 0 gives a bound beyond every row. Memory is one histogram: each pass over the column
    splits the range that holds the wanted rank into 65,536 bins, until a bin is one key wide (two
    to five passes for real clocks).
    """
    low = high = None
    for rows in source.batches([column]):
        keys = sort_keys(rows.column(column), column)
        low = int(keys.min()) if low is None else min(low, int(keys.min()))
        high = int(keys.max()) if high is None else max(high, int(keys.max()))
    assert low is not None
    assert high is not None
    bounds = []
    for share in shares:
        rank = source.num_rows - round(source.num_rows * share)
        bounds.append(
            high + 1 if rank == source.num_rows else _key(source, column, rank, low, high)
        )
    return bounds[0], bounds[1]


def _key(source: Source, column: str, rank: int, low: int, high: int) -> int:
    """The key at place ``rank`` in sorted order, known to lie in [low, high]."""
    while low < high:
        width = -(-(high - low + 1) // BINS)
        counts = np.zeros(BINS, np.int64)
        below = 0
        for rows in source.batches([column]):
            keys = sort_keys(rows.column(column), column)
            below += int((keys < low).sum())
            inside = keys[(keys >= low) & (keys <= high)]
            # Differences of int64 keys may need 64 unsigned bits.
            offsets = inside.view(np.uint64) - np.int64(low).view(np.uint64)
            counts += np.bincount((offsets // np.uint64(width)).astype(np.int64), minlength=BINS)
        bin_ = int(np.searchsorted(np.cumsum(counts) + below, rank, side="right"))
        low, high = low + bin_ * width, min(high, low + (bin_ + 1) * width - 1)
    return low


def last_rows(source: Source, group: str, timestamp: str) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of each group's last row and of the row before it, both sorted, int64.

    Ties in time go by place in the log. Groups of one row have no row before. Rows without a
    group are skipped. Memory: two rows per group and a buffer.
    """
    kept = [np.empty(0, np.int64)] * 3  # group id, sort key, row number
    buffer: list[Sequence[np.ndarray]] = []
    buffered = first = 0
    for rows in source.batches([group, timestamp]):
        ids = ids_of(rows.column(group), group)
        keys = sort_keys(rows.column(timestamp), timestamp)
        places = np.arange(first, first + rows.num_rows)
        first += rows.num_rows
        named = ids != NULL_ID
        buffer.append((ids[named], keys[named], places[named]))
        buffered += int(named.sum())
        # A buffer as large as what is kept makes the sorting linear in the rows, up to a log.
        if buffered >= max(CHUNK_ROWS, len(kept[0])):
            kept, buffer, buffered = _keep_two([kept, *buffer]), [], 0
    kept = _keep_two([kept, *buffer])
    from_end = _from_end(kept[0])
    return np.sort(kept[2][from_end == 0]), np.sort(kept[2][from_end == 1])


def _keep_two(parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The last two rows of each group, sorted by (group, key, place)."""
    ids, keys, places = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((places, keys, ids))
    order = order[_from_end(ids[order]) < 2]
    return [ids[order], keys[order], places[order]]


def _from_end(ids: np.ndarray) -> np.ndarray:
    """How many rows of the same group follow each row; ``ids`` are sorted."""
    ends = np.flatnonzero(np.append(ids[1:] != ids[:-1], True)) if len(ids) else ids
    return np.repeat(ends, np.diff(ends, prepend=-1)) - np.arange(len(ids))
