"""Counting ids of a stream: the fitted part of vocabularies and hash buckets.

Partial counts are merged with one group-by whenever they outgrow the merged part, so memory is a
few times the distinct ids (16 bytes each) and the result does not depend on order or chunking.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from recsys.features.hashing import reduce_ids_np
from recsys.types import NULL_ID

_PENDING = 1 << 20


class IdCounter:
    """id -> how often it occurred."""

    def __init__(self) -> None:
        self._ids: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._pending = 0
        self.merged = 0
        """Distinct ids when partial counts were last merged."""

    def add(self, ids: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Takes ids (N,) int64, each ``counts[i]`` times (once by default)."""
        self._ids.append(ids)
        self._counts.append(np.ones(len(ids), dtype=np.int64) if counts is None else counts)
        self._pending += len(ids)
        if self._pending > max(_PENDING, 2 * self.merged):
            self.pairs()

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct ids in no particular order, and their counts."""
        frame = self._merge()
        self._ids, self._counts = [frame["id"].to_numpy()], [frame["count"].to_numpy()]
        self._pending = 0
        self.merged = len(frame)
        return self._ids[0], self._counts[0]

    def ranked(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Distinct ids by falling count (ties by id), their counts, and the count of null."""
        frame = self._merge()
        nulls = frame.filter(pl.col("id") == NULL_ID)["count"].sum()
        frame = frame.filter(pl.col("id") != NULL_ID).sort(
            ["count", "id"], descending=[True, False]
        )
        return frame["id"].to_numpy(), frame["count"].to_numpy(), int(nulls)

    def _merge(self) -> pl.DataFrame:
        columns = {
            "id": _concatenate(self._ids),
            "count": _concatenate(self._counts),
        }
        return pl.DataFrame(columns).group_by("id").agg(pl.col("count").sum())


class VocabularyCollector:
    """Counts ids, keeps the frequent ones.

    State: ``ids`` (V,) by falling count, ties by id; ``counts`` (1 + oov_ids + V,): training
    frequency of null, of each OOV id (ids that were cut fall on them as unseen ids do), of ``ids``.
    """

    def __init__(self, *, min_count: int, max_size: int | None, oov_ids: int) -> None:
        self._counter = IdCounter()
        self._min_count = min_count
        self._max_size = max_size
        self._oov_ids = oov_ids

    def add(self, values: np.ndarray, counts: np.ndarray | None = None) -> None:
        """See `Collector.add`."""
        self._counter.add(values, counts)

    def state(self) -> dict[str, np.ndarray]:
        """See the class."""
        ids, counts, nulls = self._counter.ranked()
        kept = int(np.searchsorted(-counts, -self._min_count, side="right"))
        if self._max_size is not None:
            kept = min(kept, self._max_size)
        oov = np.zeros(self._oov_ids, dtype=np.int64)
        np.add.at(oov, reduce_ids_np(ids[kept:], 0, self._oov_ids), counts[kept:])
        return {
            "ids": ids[:kept].copy(),
            "counts": np.concatenate([np.array([nulls], dtype=np.int64), oov, counts[:kept]]),
        }


class HashCollector:
    """Counts hash buckets.

    State: ``salt`` (1,); ``counts`` (1 + buckets,): training frequency of null and of each bucket.
    """

    def __init__(self, *, salt: int, buckets: int) -> None:
        self._salt = salt
        self._counts = np.zeros(1 + buckets, dtype=np.int64)

    def add(self, values: np.ndarray, counts: np.ndarray | None = None) -> None:
        """See `Collector.add`."""
        buckets = 1 + reduce_ids_np(values, self._salt, len(self._counts) - 1)
        buckets[values == NULL_ID] = 0
        np.add.at(self._counts, buckets, 1 if counts is None else counts)

    def state(self) -> dict[str, np.ndarray]:
        """See the class."""
        return {"salt": np.array([self._salt], dtype=np.int64), "counts": self._counts.copy()}


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
