"""Which parts of a config cannot work together, found before any data is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys.features import FeatureConfig
from recsys.models import MODELS
from recsys.settings import TrainConfig
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
