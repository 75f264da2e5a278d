"""The id space of the items of a sequence model: how it is fitted, and which id is which item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys.features import FeatureConfig, Features, fit
from recsys.types import InputError
from serving.encode import ids_of
from serving.parquet import Source

BATCH_ROWS = 2048
"""Users at a time: their sequences may be long."""


def fit_sequences(
    configs: Mapping[str, FeatureConfig],
    source: Source,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """`fit` of the one sequence feature on whole train sequences.

    ``max_length`` says what a model reads at once, not which items exist: all items of a sequence
    are counted, and the graph's input takes whole lists (``inputs[0].max_length`` is None). Errors:
    those of `fit`, and `InputError` where no item is left.
    """
    whole = {
        name: config.model_copy(update={"max_length": None}) for name, config in configs.items()
    }
    fitted = fit(whole, source, progress, batch_rows=BATCH_ROWS)
    features = replace(fitted, configs=dict(configs))
    (field,) = features.fields
    assert field.num_ids is not None, "a config of hashed items is refused"
    if field.num_ids <= special_ids(features):
        raise InputError(
            f"features.{field.name}: no item of train is left to recommend; lower min_count"
        )
    return features


def train_items(catalogue: Path) -> pa.Array:
    """The raw items of train: of a `SequenceFiles.catalogue`."""
    return pq.read_table(catalogue, columns=["item"]).column("item").combine_chunks()


def as_typed(items: pa.Array, dtype: pa.DataType) -> pa.Array:
    """``items`` of the type that the log has, if they all have a place in it."""
    try:
        return items.cast(dtype)
    except pa.ArrowInvalid:  # longer integers than any of the log
        return items


def raw_items(items: pa.Array, features: Features) -> pa.Array:
    """The raw item of every encoded id (num_ids,), null for ids that are no item.

    ``items``: each raw item that has an id once, maybe among others.
    """
    (field,) = features.fields
    assert field.num_ids is not None, "sequences are fitted with a closed id space"
    raw = torch.from_numpy(np.array(ids_of(items, "item")))
    encoded = features.encoder().list_features[0](raw).numpy()
    place = np.full(field.num_ids, -1)
    place[encoded] = np.arange(len(items))
    place[: special_ids(features)] = -1
    return items.take(pa.array(place, mask=place < 0))


def special_ids(features: Features) -> int:
    """How many of the first encoded ids are no items: null, and those of the unseen."""
    state = features.states[features.fields[0].name]
    return len(state["counts"]) - len(state["ids"])
