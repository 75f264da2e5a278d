"""Raw items of a stream with their counts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from serving.encode import ids_of

_PENDING = 2**20


class ItemCounts:
    """Counts raw values; memory is a few times the distinct ones."""

    def __init__(self, dtype: pa.DataType) -> None:
        self._merged = pa.table({"item": pa.nulls(0, dtype), "count": pa.array([], pa.int64())})
        self._parts: list[pa.Table] = []
        self._pending = 0

    def add(self, items: pa.Array) -> None:
        """Takes items (N,) without null."""
        found = items.value_counts()
        self._parts.append(pa.table({"item": found.field(0), "count": found.field(1)}))
        self._pending += len(found)
        if self._pending > max(_PENDING, 2 * self._merged.num_rows):
            self._merge()

    def table(self) -> pa.Table:
        """Columns ``item`` and ``count``, by falling count, ties by id: as in a vocabulary."""
        self._merge()
        table = self._merged
        ids = ids_of(table.column("item"), "item")
        order = np.lexsort((ids, -table.column("count").to_numpy()))
        return table.take(pa.array(order))

    def _merge(self) -> None:
        grouped = pa.concat_tables([self._merged, *self._parts]).group_by("item")
        self._merged = grouped.aggregate([("count", "sum")]).rename_columns(["item", "count"])
        self._parts, self._pending = [], 0
