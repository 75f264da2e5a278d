"""A log of Criteo's shape, for benchmarks: 13 numeric and 26 text columns, a chosen id count."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa

from serving.parquet import write_parquet

# Distinct values of C1..C26 in the Criteo display advertising log (Kaggle 2014, all rows).
CRITEO_IDS = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
CRITEO_NULLS = {19: 0.44, 20: 0.44, 22: 0.76, 25: 0.44, 26: 0.44}  # share of null, by column
NUMERIC_NULLS = (0.45, 0.0, 0.21, 0.22, 0.03, 0.22, 0.04, 0.0, 0.04, 0.45, 0.04, 0.77, 0.22)
ZIPF = 1.1
CHUNK_ROWS = 131_072
_HEX = np.frombuffer("".join(f"{i:02x}" for i in range(256)).encode(), np.uint16)


def column_ids(rows: int, ids: int) -> list[int]:
    """Distinct ids of each text column: Criteo's, scaled to sum to ``ids``, at most half the
    non-null rows."""
    caps = [max(3, int(rows * (1 - CRITEO_NULLS.get(c, 0.0)) / 2)) for c in range(1, 27)]
    low, high = 0.0, 64.0
    for _ in range(60):  # bisection on the scale; small columns keep at least their own size
        scale = (low + high) / 2
        sizes = _sizes(caps, scale)
        low, high = (scale, high) if sum(sizes) < ids else (low, scale)
    return _sizes(caps, high)


def _sizes(caps: list[int], scale: float) -> list[int]:
    return [
        min(cap, max(round(own * scale), min(own, 1000)))
        for own, cap in zip(CRITEO_IDS, caps, strict=True)
    ]


def write_criteo_log(
    path: str | os.PathLike[str], *, rows: int = 1_000_000, ids: int = 1_560_000, seed: int = 0
) -> int:
    """Write ``label``, ``I1..I13`` (float32, counts with nulls) and ``C1..C26`` (8 hex digits,
    Zipf, some nulls) to one Parquet file; return the exact number of distinct text ids.

    Every id of a column occurs at least once, so the number is the sum over columns; it is close
    to ``ids`` unless ``rows`` are too few to hold them. Labels (about a quarter clicks) depend on
    the frequent ids, on numerics and on one pair of columns. Memory is one chunk of rows.
    """
    rng = np.random.default_rng(seed)
    sizes = column_ids(rows, ids)
    effects = [rng.normal(0.0, 0.25, 256) for _ in sizes]
    pair = rng.normal(0.0, 0.6, (64, 64))
    numerics = [pa.field(f"I{i}", pa.float32()) for i in range(1, 14)]
    texts = [pa.field(f"C{i}", pa.string()) for i in range(1, 27)]
    schema = pa.schema([pa.field("label", pa.int8()), *numerics, *texts])
    with write_parquet(path, schema) as writer:
        for first in range(0, rows, CHUNK_ROWS):
            n = min(CHUNK_ROWS, rows - first)
            logit = np.full(n, -1.6)
            numbers = []
            for share in NUMERIC_NULLS:
                value = np.floor(rng.lognormal(1.5, 1.5, n)).astype(np.float32)
                null = rng.random(n) < share
                logit += np.where(null, 0.0, 0.08 * (np.log1p(value) - 1.6))
                numbers.append(pa.array(value, mask=null))
            columns, ranks = [], []
            for c, size in enumerate(sizes):
                rank, null = _ranks(rng, size, CRITEO_NULLS.get(c + 1, 0.0), first, n, rows)
                logit += np.where(null, 0.0, effects[c][rank % 256])
                columns.append(_hex_array(rank, null, c))
                ranks.append(rank % 64)
            logit += pair[ranks[0], ranks[1]]
            label = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int8)
            writer.write_batch(
                pa.RecordBatch.from_arrays([label, *numbers, *columns], schema=schema)
            )
    return sum(sizes)


def _ranks(
    rng: np.random.Generator, size: int, nulls: float, first: int, n: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Zipf ranks in [0, size) and the null mask; over the whole log every rank occurs."""
    # Inverse of the continuous power law on [1, size + 1).
    top = (size + 1.0) ** (1 - ZIPF)
    rank = (1 + rng.random(n) * (top - 1)) ** (1 / (1 - ZIPF)) - 1
    rank = np.minimum(rank.astype(np.int64), size - 1)
    null = rng.random(n) < nulls
    # This chunk's share of the ids is put on random rows, spread over the ranks by a stride.
    a, b = size * first // rows, size * (first + n) // rows
    places = rng.permutation(n)[: b - a]
    rank[places] = np.arange(a, b) * _stride(size) % size
    null[places] = False
    return rank, null


def _stride(size: int) -> int:
    """A step near the golden section that visits all ranks."""
    step = max(1, int(size * 0.618))
    while np.gcd(step, size) != 1:
        step += 1
    return step


def _hex_array(rank: np.ndarray, null: np.ndarray, column: int) -> pa.Array:
    """Text of 8 hex digits, distinct for distinct ranks of a column (a bijection of 32 bits)."""
    with np.errstate(over="ignore"):
        x = rank.astype(np.uint32) + np.uint32(column * 0x9E3779B1 % 2**32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # murmur3's finaliser
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
        x ^= x >> np.uint32(16)
    text = _HEX[x.view(np.uint8)]
    offsets = np.arange(0, 8 * len(rank) + 1, 8, dtype=np.int32)
    plain = pa.StringArray.from_buffers(len(rank), pa.py_buffer(offsets), pa.py_buffer(text))
    if not null.any():
        return plain
    bits = pa.array(~null).buffers()[1]
    return pa.StringArray.from_buffers(
        len(rank), pa.py_buffer(offsets), pa.py_buffer(text), bits, int(null.sum())
    )
