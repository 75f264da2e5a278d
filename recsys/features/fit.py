"""Fitting: one streaming pass over the training rows.

The result depends on the multiset of rows alone, not on their order, their files or the size of
batches: counts add up, sums are exact, quantiles come from counted values.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

import pyarrow as pa

from recsys.features.base import Collector, InputKind
from recsys.features.columns import FloatReader, IdReader, ListReader, Reader
from recsys.features.kinds import FeatureConfig
from recsys.features.state import Features, raw_inputs
from recsys.types import InputError
from serving.encode import is_list, type_family
from serving.parquet import Source


def fit(
    configs: Mapping[str, FeatureConfig],
    source: Source,
    progress: Callable[[int], None] | None = None,
    *,
    batch_rows: int = 65_536,
) -> Features:
    """Fits all features in one pass over ``source`` (the training rows only).

    ``configs``: feature name -> config; the order decides the order of fields. ``progress`` is
    called with the number of rows of each batch, at most ``batch_rows``. Errors: `InputError` for a
    column that is missing or whose type the feature cannot use, and for features that cannot share
    a table.
    """
    families = type_families(configs, source)
    collectors = {
        name: config.collector(name, families[name])
        for name, config in configs.items()
        if config.owner is None
    }
    readers = _readers(configs, families, collectors)
    if readers:
        columns = list(dict.fromkeys(column for column, _ in readers))
        for batch in source.batches(columns, batch_rows, dictionary=columns):
            for column, reader in readers:
                reader.add(batch.column(column))
            if progress is not None:
                progress(batch.num_rows)
    for _, reader in readers:
        reader.finish()
    states = {name: {} if c is None else c.state() for name, c in collectors.items()}
    return Features(configs=dict(configs), inputs=raw_inputs(configs, families), states=states)


def type_families(configs: Mapping[str, FeatureConfig], source: Source) -> dict[str, str]:
    """Feature name -> type family of its column. Errors: as `fit`."""
    more = len(source.files) - 1  # one of which may have brought the type
    where = source.files[0] + (f" and {more} more" if more else "")
    families = {
        name: _family(name, config, source.schema, where) for name, config in configs.items()
    }
    _check_sharing(configs, families)
    return families


def _readers(
    configs: Mapping[str, FeatureConfig],
    families: Mapping[str, str],
    collectors: Mapping[str, Collector | None],
) -> list[tuple[str, Reader]]:
    """(column, reader) for every column that some collector needs; lists one for each feature."""
    readers: list[tuple[str, Reader]] = []
    shared: dict[tuple[InputKind, str], list[Collector]] = {}
    for name, config in configs.items():
        collector = collectors[config.owner or name]
        if collector is None:
            continue
        kind, column = config.input_kind(families[name]), config.source_column(name)
        if kind == "ids":
            reader = ListReader(column=column, keep_last=config.keep_last, collectors=[collector])
            readers.append((column, reader))
        else:
            shared.setdefault((kind, column), []).append(collector)
    for (kind, column), sinks in shared.items():
        make = FloatReader if kind == "float" else IdReader
        readers.append((column, make(column=column, collectors=sinks)))
    return readers


def _family(name: str, config: FeatureConfig, schema: pa.Schema, where: str) -> str:
    """The type family of a feature's column, if the feature can use it."""
    column = config.source_column(name)
    if column not in schema.names:
        close = difflib.get_close_matches(column, schema.names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(schema.names)}"
        raise InputError(f"features.{name}: column {column!r} is missing in {where}; {hint}")
    dtype = schema.field(column).type
    family = type_family(dtype, f"features.{name}: column {column!r} in {where}")
    if family == "null":
        raise InputError(
            f"features.{name}: column {column!r} in {where} holds nothing but null; remove the "
            "feature"
        )
    wants_list = config.input_kind(family) == "ids"
    nested = is_list(dtype) and is_list(dtype.value_type)
    if family not in config.families or is_list(dtype) != wants_list or nested:
        remedy = config.remedy
        if nested:
            remedy = "flatten its lists"
        elif is_list(dtype) and config.type in ("categorical", "numeric"):
            remedy = "use type bag or sequence"
        raise InputError(
            f"features.{name}: column {column!r} in {where} is {dtype}, which type {config.type} "
            f"cannot read; {remedy}"
        )
    return family


def _check_sharing(configs: Mapping[str, FeatureConfig], families: Mapping[str, str]) -> None:
    for name, config in configs.items():
        owner = config.owner
        if owner is None:
            continue
        if owner not in configs or owner == name:
            raise InputError(f"features.{name}.shares names {owner!r}, which is no other feature")
        if configs[owner].type not in ("categorical", "bag", "sequence"):
            raise InputError(
                f"features.{name}.shares names {owner!r}, of type {configs[owner].type}; share a "
                "categorical, bag or sequence feature"
            )
        if configs[owner].owner is not None:
            raise InputError(
                f"features.{name}.shares names {owner!r}, which itself shares "
                f"{configs[owner].owner!r}; share {configs[owner].owner!r}"
            )
        if families[name] != families[owner]:
            raise InputError(
                f"features.{name} ({families[name]}) cannot share {owner!r} ({families[owner]}): "
                "their ids differ; cast one column to the type of the other"
            )
