"""Label, weight and group columns: what rows are judged by, checked value by value."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.settings import DataConfig
from recsys.types import InputError
from serving.encode import ids_of, is_list, type_family
from serving.parquet import Source


def target_columns(config: DataConfig) -> list[str]:
    """Names of the label, weight and group columns that ``config`` names."""
    return [name for name in (config.label, config.weight, config.group) if name is not None]


def labels(rows: pa.RecordBatch, config: DataConfig, source: Source, first: int) -> np.ndarray:
    """Labels of ``rows``, (B,) float32 in {0, 1}.

    ``first``: row number in ``source`` of the first row, to say where a bad value is. Raises
    `InputError` for null and for anything but 0 and 1 (bool, int, float or decimal).
    """
    values = _numbers(rows, config.label, "label", source)
    bad = np.flatnonzero((values != 0) & (values != 1))
    if len(bad):
        raise InputError(
            _at(source, first, bad[0], rows, config.label)
            + " is no label; labels must be 0 or 1, never null"
        )
    return values.astype(np.float32)


def weights(rows: pa.RecordBatch, config: DataConfig, source: Source, first: int) -> np.ndarray:
    """Sample weights of ``rows``, (B,) float32; ones if the log has none.

    Raises `InputError` for null, NaN, infinity and negative numbers.
    """
    if config.weight is None:
        return np.ones(rows.num_rows, np.float32)
    values = _numbers(rows, config.weight, "weight", source)
    bad = np.flatnonzero(~((values <= np.finfo(np.float32).max) & (values >= 0)))
    if len(bad):
        raise InputError(
            _at(source, first, bad[0], rows, config.weight)
            + " is no weight; weights must be finite (as float32) and at least 0"
        )
    return values.astype(np.float32)


def groups(rows: pa.RecordBatch, config: DataConfig) -> np.ndarray:
    """Ids of the group column by id rule v1, (B,) int64; zeros if the log has none."""
    if config.group is None:
        return np.zeros(rows.num_rows, np.int64)
    return ids_of(rows.column(config.group), config.group)


def check_targets(source: Source, config: DataConfig) -> None:
    """Read the special columns of ``source`` once and raise `InputError` for the first bad value.

    Runs before anything is fitted, so that a bad label costs seconds, not an epoch.
    """
    first, total = 0, 0.0
    columns = target_columns(config)
    for role in ("label", "weight", "group"):
        name = getattr(config, role)
        try:
            if name is not None:
                source.batches([name]).close()  # refuses one that is missing
        except InputError as error:
            raise InputError(f"data.{role}: {error}") from None
    if config.group is not None:
        kind = source.schema.field(config.group).type
        if type_family(kind, config.group) == "float" or is_list(kind):
            raise InputError(
                f"data.group: column {config.group!r} is {kind}; cast it to integers or text"
            )
    for rows in source.batches(columns[:-1] if config.group else columns):
        labels(rows, config, source, first)
        total += float(weights(rows, config, source, first).sum(dtype=np.float64))
        first += rows.num_rows
    if config.weight is not None and total == 0:
        raise InputError(
            f"{source.files[0]}: all weights of column {config.weight!r} are 0; there is nothing "
            "to learn from or to judge by"
        )


def _numbers(rows: pa.RecordBatch, name: str, role: str, source: Source) -> np.ndarray:
    array = rows.column(name)
    family = type_family(array.type, name)
    if family not in ("int", "float", "bool", "null") or pa.types.is_nested(array.type):
        raise InputError(
            f"data.{role}: column {name!r} in {source.files[0]} is {array.type}; cast it to a "
            "number" + ", 1 for a click and 0 for none" * (role == "label")
        )
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _at(source: Source, first: int, row: int, rows: pa.RecordBatch, name: str) -> str:
    value = rows.column(name)[int(row)].as_py()
    return f"{source.place(first + int(row))}: column {name!r}: {value!r}"
