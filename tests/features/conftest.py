"""Fitting on a table in memory, cut into any chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from recsys.features import FeatureConfig, Features, fit
from recsys.types import Batch
from serving.encode import encode, is_list

CONFIGS = TypeAdapter(dict[str, FeatureConfig])


class TableSource:
    """A `serving.parquet.Source` over a table, read ``chunk`` rows at a time."""

    files = ("memory",)
    fingerprint = "memory"

    def __init__(self, table: pa.Table, chunk: int) -> None:
        self.schema = table.schema
        self.num_rows = table.num_rows
        self._table = table
        self._chunk = chunk

    def batches(
        self, columns: Sequence[str], batch_rows: int = 65536, dictionary: Sequence[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        for start in range(0, self.num_rows, self._chunk):
            part = self._table.slice(start, self._chunk)
            arrays = [
                _dictionary(part.column(name).combine_chunks()) if name in dictionary
                else part.column(name).combine_chunks()
                for name in columns
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(arrays, names=list(columns))

    def place(self, row: int) -> str:
        return f"row {row}"


def _dictionary(array: pa.Array) -> pa.Array:
    if is_list(array.type) and pa.types.is_string(array.type.value_type):
        values = array.values.dictionary_encode()
        return pa.ListArray.from_arrays(array.offsets, values, mask=array.is_null())
    return array.dictionary_encode() if pa.types.is_string(array.type) else array


FitTable = Callable[..., Features]


@pytest.fixture(scope="session")
def fit_table() -> FitTable:
    """(configs as plain mappings, columns or table, chunk) -> fitted features."""

    def run(
        configs: Mapping[str, Any], data: Mapping[str, Any] | pa.Table, chunk: int = 1000
    ) -> Features:
        table = data if isinstance(data, pa.Table) else pa.table(dict(data))
        return fit(CONFIGS.validate_python(configs), TableSource(table, chunk))

    return run


def encoded(features: Features, data: Mapping[str, Any] | pa.Table) -> Batch:
    """Rows through the whole way: id rule, then the encoder."""
    table = data if isinstance(data, pa.Table) else pa.table(dict(data))
    batch: Batch = features.encoder()(encode(table, features.inputs))
    return batch


@pytest.fixture(scope="session")
def encode_rows() -> Callable[[Features, Mapping[str, Any] | pa.Table], Batch]:
    """(features, columns or table) -> encoded batch."""
    return encoded
