"""Record batches -> rows of tables, with the work on ids done once per distinct value.

Equal, bit for bit, to ``id_map(encoder(encode(batch, inputs)))``, at a fraction of its cost: text
columns arrive as dictionaries, and hashing, vocabulary lookup and row arithmetic run on the
dictionary entries that occur; the rows of a batch are then gathered by code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recsys.embeddings.id_map import IdMap
from recsys.features import Features
from recsys.types import NULL_ID
from serving.encode import floats_of, ids_of, unique_ids

Map = Callable[[Tensor], Tensor]


class Ragged(NamedTuple):
    """One list field of n rows: ``values`` (elements, T) row indices, ``lengths`` (n,) int64."""

    values: np.ndarray
    lengths: np.ndarray


class Rows(NamedTuple):
    """n rows at the rows stage: ``ids`` (n, S), ``floats`` (n, K) float32, one `Ragged` a list."""

    ids: np.ndarray
    floats: np.ndarray
    lists: list[Ragged]


class RowIndexTooLarge(Exception):
    """A row index does not fit the chosen integer type."""


class RowEncoder:
    """Encodes the record batches of one stream; keeps the tables of the last dictionaries.

    ``index``: type of row indices, ``int32`` or ``int64``.
    """

    def __init__(self, features: Features, id_map: IdMap, index: str) -> None:
        encoder = features.encoder()
        self._index = index
        self._ids = [f.column for f in features.inputs if f.kind == "id"]
        self._floats = [f.column for f in features.inputs if f.kind == "float"]
        self._lists = [(f.column, f.max_length) for f in features.inputs if f.kind == "ids"]
        self._from_ids: list[tuple[str, _ByValue] | None] = []
        self._from_floats: list[tuple[int, Map, np.ndarray] | None] = []
        for c, (feature, source) in enumerate(
            zip(encoder.id_features, encoder.id_sources, strict=True)
        ):
            if source >= 0:
                column = self._ids[source]
                rows = partial(_compose, feature, partial(id_map.field_rows, c))
                by_value = _ByValue(column, rows, index)
                self._from_ids.append((column, by_value))
                self._from_floats.append(None)
            else:
                num_ids = features.fields[c].num_ids
                assert num_ids is not None, "a categorical field of a number has a fitted id space"
                table = _table(id_map.field_rows(c, torch.arange(num_ids)), index)
                self._from_ids.append(None)
                self._from_floats.append((-1 - source, feature, table))
        self._numbers = list(zip(encoder.float_features, encoder.float_sources, strict=True))
        self._elements = [
            _ByValue(column, partial(_compose, feature, partial(id_map.list_rows, f)), index)
            for f, ((column, _), feature) in enumerate(
                zip(self._lists, encoder.list_features, strict=True)
            )
        ]

    @property
    def columns(self) -> list[str]:
        """Raw columns that `__call__` reads."""
        return list(dict.fromkeys([*self._ids, *self._floats, *(name for name, _ in self._lists)]))

    @property
    def padding(self) -> list[np.ndarray]:
        """For each list field the row indices (T,) that padding has."""
        return [elements.rows_of(np.array([NULL_ID]))[:, 0] for elements in self._elements]

    def __call__(self, batch: pa.RecordBatch) -> Rows:
        """Encodes ``batch``; raises `RowIndexTooLarge` if a row index does not fit."""
        raw = [_writable(floats_of(batch.column(name), name)) for name in self._floats]
        slots: list[tuple[np.ndarray, np.ndarray]] = []  # table (U,) of a slot, codes (n,)
        for from_ids, from_floats in zip(self._from_ids, self._from_floats, strict=True):
            if from_ids is not None:
                table, codes = from_ids[1](batch.column(from_ids[0]))
            else:
                assert from_floats is not None
                source, feature, table = from_floats
                codes = feature(raw[source]).numpy()
            slots += [(slot, codes) for slot in table]
        ids = np.empty((len(slots), batch.num_rows), self._index)
        for out, (slot, codes) in zip(ids, slots, strict=True):
            np.take(slot, codes, out=out, mode="clip")
        floats = [feature(raw[source]) for feature, source in self._numbers]
        return Rows(
            np.ascontiguousarray(ids.T),  # (n, S)
            torch.cat(floats, 1).numpy() if floats else np.empty((batch.num_rows, 0), np.float32),
            [
                self._ragged(batch.column(name), keep, elements)
                for (name, keep), elements in zip(self._lists, self._elements, strict=True)
            ],
        )

    def _ragged(self, array: pa.Array, keep: int | None, elements: _ByValue) -> Ragged:
        if pa.types.is_null(array.type):
            width = elements.rows_of(np.empty(0, np.int64)).shape[0]
            return Ragged(np.empty((0, width), self._index), np.zeros(len(array), np.int64))
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64)
        flat = pc.list_flatten(array)  # null lists dropped, slices respected
        if keep is not None and lengths.max(initial=0) > keep:
            from_end = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(flat))
            flat = flat.filter(pa.array(from_end <= keep))
            lengths = np.minimum(lengths, keep)
        table, codes = elements(flat)
        return Ragged(np.take(table.T, codes, axis=0), lengths)


class _ByValue:
    """Table rows of a column, computed once per distinct value of a dictionary."""

    def __init__(self, column: str, rows: Map, index: str) -> None:
        self._column = column
        self._rows = rows
        self._index = index
        self._dictionary: pa.Array | None = None
        self._table = np.empty((0, 0), index)  # (T, U + 1), null last
        self._done = np.empty(0, bool)

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Raw ids (U,) -> row indices (T, U)."""
        return _table(self._rows(_writable(ids)), self._index)

    def __call__(self, array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """``(table (T, U), codes (N,))``: value i has the rows ``table[:, codes[i]]``."""
        if not isinstance(array, pa.DictionaryArray):
            ids, codes = unique_ids(array, self._column)
            return self.rows_of(ids), codes
        values = array.dictionary
        codes = pc.fill_null(array.indices.cast(pa.int32()), len(values)).to_numpy()
        # The reader hands out equal copies of a row group's dictionary; comparing them costs a
        # hundredth of encoding them.
        if self._dictionary is None or not values.equals(self._dictionary):
            self._dictionary = values
            self._done = np.zeros(len(values) + 1, bool)
            if len(values) <= 4 * len(codes):  # most entries will be wanted, now or soon
                self._table = self.rows_of(np.append(ids_of(values, self._column), NULL_ID))
                self._done[:] = True
            else:
                slots = len(self.rows_of(np.array([NULL_ID])))
                self._table = np.zeros((slots, len(self._done)), self._index)
        if not self._done.all():
            used = np.bincount(codes, minlength=len(self._done)) > 0
            fresh = np.flatnonzero(used & ~self._done)
            named = fresh[fresh < len(values)]
            ids = ids_of(values.take(pa.array(named)), self._column)
            self._table[:, fresh] = self.rows_of(np.append(ids, NULL_ID)[: len(fresh)])
            self._done[fresh] = True
        return self._table, codes


def _compose(feature: Map, rows: Map, ids: Tensor) -> Tensor:
    return rows(feature(ids))


def _table(rows: Tensor, index: str) -> np.ndarray:
    """(U, T) tensor -> (T, U) contiguous array of type ``index``."""
    if rows.numel():
        low, high = (int(end) for end in rows.aminmax())
        if low < np.iinfo(index).min or high > np.iinfo(index).max:
            raise RowIndexTooLarge
    return np.ascontiguousarray(rows.numpy().T, dtype=index)


def _writable(values: np.ndarray) -> Tensor:
    """As a tensor; torch warns of views of read-only Arrow memory."""
    return torch.from_numpy(values if values.flags.writeable else values.copy())
