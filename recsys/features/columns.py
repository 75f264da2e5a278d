"""Arrow columns of the training pass -> collectors: each column is decoded once for all features.

Text arrives as dictionaries: their codes are counted with one bincount per batch, and only the
dictionary is hashed, once for as long as batches share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.features.base import Collector
from recsys.types import NULL_ID
from serving.encode import floats_of, ids_of


class Reader(Protocol):
    """Feeds one column to its collectors."""

    def add(self, array: pa.Array) -> None:
        """The column's values in the next batch."""
        ...

    def finish(self) -> None:
        """After the last batch."""
        ...


class FloatReader:
    """Numbers: float64, NaN for null."""

    def __init__(self, *, column: str, collectors: Sequence[Collector]) -> None:
        self._column = column
        self._collectors = collectors

    def add(self, array: pa.Array) -> None:
        """See `Reader.add`."""
        values = floats_of(array, self._column)
        for collector in self._collectors:
            collector.add(values)

    def finish(self) -> None:
        """Nothing is held back."""


class IdReader:
    """Ids of a column, with codes of dictionaries counted before they are hashed."""

    def __init__(self, *, column: str, collectors: Sequence[Collector]) -> None:
        self._column = column
        self._collectors = collectors
        self._dictionary: pa.Array | None = None
        self._code_counts = np.zeros(0, dtype=np.int64)

    def add(self, array: pa.Array) -> None:
        """See `Reader.add`."""
        if not isinstance(array, pa.DictionaryArray):
            self._pass_on(ids_of(array, self._column), None)
            return
        if self._dictionary is None or not self._dictionary.equals(array.dictionary):
            self.finish()
            self._dictionary = array.dictionary
            self._code_counts = np.zeros(len(array.dictionary), dtype=np.int64)
        codes = array.indices
        if codes.null_count > 0:
            nulls = np.array([codes.null_count], dtype=np.int64)
            self._pass_on(np.array([NULL_ID]), nulls)
            codes = codes.drop_null()
        self._code_counts += np.bincount(codes.to_numpy(), minlength=len(self._code_counts))

    def finish(self) -> None:
        """Hashes the dictionary and hands its ids over with their counts."""
        if self._dictionary is None:
            return
        used = np.flatnonzero(self._code_counts)
        values = self._dictionary
        if len(used) < len(values):
            values = values.take(pa.array(used))
        self._pass_on(ids_of(values, self._column), self._code_counts[used])
        self._dictionary = None

    def _pass_on(self, ids: np.ndarray, counts: np.ndarray | None) -> None:
        for collector in self._collectors:
            collector.add(ids, counts)


class ListReader:
    """Ids of list elements, of the last ``keep_last`` ones of each list."""

    def __init__(
        self, *, column: str, keep_last: int | None, collectors: Sequence[Collector]
    ) -> None:
        self._keep_last = keep_last
        self._elements = IdReader(column=column, collectors=collectors)

    def add(self, array: pa.Array) -> None:
        """See `Reader.add`."""
        elements = pc.list_flatten(array)
        if self._keep_last is not None:
            lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64)
            if lengths.max(initial=0) > self._keep_last:
                ends = np.repeat(np.cumsum(lengths), lengths)
                kept = ends - np.arange(len(ends)) <= self._keep_last
                elements = elements.filter(pa.array(kept))
        self._elements.add(elements)

    def finish(self) -> None:
        """See `IdReader.finish`."""
        self._elements.finish()
