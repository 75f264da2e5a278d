"""Which parts of a config cannot work together, found before any data is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys.embeddings import EmbeddingConfig
from recsys.embeddings.managed import ManagedConfig
from recsys.embeddings.quantised import IntegerTableConfig
from recsys.features import FeatureConfig
from recsys.features.sequence import Sequence as SequenceFeature
from recsys.models import MODELS
from recsys.settings import ExportConfig, TrainConfig
from recsys.types import FieldKind, FieldSpec

_KINDS: dict[str, FieldKind] = {
    "categorical": "categorical",
    "null_indicator": "categorical",
    "numeric": "numeric",
    "bag": "bag",
    "sequence": "sequence",
}


def check_parts(features: Mapping[str, FeatureConfig], model: Any, train: TrainConfig) -> None:
    """Errors: `ValueError` for features that the model or the training mode cannot work with."""
    check = getattr(MODELS[model.name], "check", None)
    if check is not None:
        check(model, _fields(features))
    if train.embedding_l2.value > 0 and train.embedding_l2.mode == "batch_aware":
        for name, feature in features.items():
            shared = getattr(feature, "shares", None) is not None
            hashed = getattr(feature, "encoding", None) == "hash"
            if hashed and not shared and getattr(feature, "buckets", None) is None:
                raise ValueError(
                    f"train.embedding_l2.mode batch_aware needs the frequency of every id, but "
                    f"features.{name} keeps open ids; set features.{name}.buckets, use encoding "
                    "vocabulary, or mode touched_rows"
                )


def check_tables(embedding: EmbeddingConfig, train: TrainConfig, export: ExportConfig) -> None:
    """Errors: `ValueError` for training and export that a table of integers, or one whose rows pass
    from id to id, cannot take part in."""
    l2 = train.embedding_l2
    method = f"embedding.method {embedding.method}"
    own = isinstance(embedding, (IntegerTableConfig, ManagedConfig))
    if own and train.store == "torchrec":
        raise ValueError(f"train.store torchrec: {method} keeps its own tables; set store torch")
    if isinstance(embedding, ManagedConfig) and l2.value > 0 and l2.mode == "batch_aware":
        raise ValueError(
            f"train.embedding_l2.mode batch_aware: rows of {method} pass from id to id and have no "
            "frequency; set mode touched_rows, decoupled or all_rows"
        )
    if not isinstance(embedding, IntegerTableConfig):
        return
    if export.quantise is not None:
        raise ValueError(
            f"export.quantise {export.quantise}: the rows of {method} are integers already; remove "
            "the key"
        )
    if train.embedding_gradient == "dense":
        raise ValueError(
            f"train.embedding_gradient dense: {method} moves touched rows only; remove the key"
        )
    if l2.value > 0 and l2.mode in ("all_rows", "batch_aware"):
        raise ValueError(
            f"train.embedding_l2.mode {l2.mode}: {method} moves touched rows only and counts no "
            "frequencies; set mode touched_rows or decoupled"
        )


def check_history(features: Mapping[str, FeatureConfig], model: str) -> None:
    """Errors: `ValueError` unless there is one feature, a sequence whose ids name items."""
    if len(features) > 1:
        raise ValueError(
            f"model {model} reads one feature, the sequence of items, but there are "
            f"{', '.join(features)}; keep one"
        )
    (name, feature), *_ = features.items()
    if not isinstance(feature, SequenceFeature):
        raise ValueError(
            f"features.{name} is {feature.type}, but model {model} reads a sequence; write "
            f"{name}: {{type: sequence, max_length: 200}}"
        )
    if feature.shares is not None:
        raise ValueError(f"features.{name}.shares: model {model} has no other feature; remove it")
    if feature.encoding != "vocabulary":
        raise ValueError(
            f"features.{name}.encoding hash: hashed ids do not name items, so that nothing can be "
            "recommended; use encoding vocabulary (min_count and max_size bound it)"
        )


def _fields(features: Mapping[str, FeatureConfig]) -> list[FieldSpec]:
    """What is known of the fields of a run before they are fitted."""
    return [
        FieldSpec(
            name=name,
            kind=_KINDS[feature.type],
            shares=getattr(feature, "shares", None),
            max_length=getattr(feature, "max_length", None),
        )
        for name, feature in features.items()
    ]
