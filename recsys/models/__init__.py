"""CTR models: ``forward(batch) -> logits (B,)`` and nothing else.

A model states which embedding layers it wants (``tables``), is handed them, and knows no loss,
optimiser, path or metric. To add one: one file, one line in each list of `classifiers.py` and in
`papers.py`, one config.

Each entry of `MODELS` is a module class with, beside ``forward``: ``Config``, its frozen config;
``tables(config, embedding_dim)``, the embedding layers it asks for as name -> width;
``__init__(config, fields, layers)``; ``example()``, a tiny config for the laws. A model that is
trained by more than its logits has ``loss(batch, target) -> scalar`` (FinalNet's distillation);
the others get the weighted cross-entropy of their logits. A model that needs certain fields has
``check(config, fields)``, which refuses others when the config is read (DIN needs a history).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from recsys.models.classifiers import CLASSIFIERS, ClassifierConfig
from recsys.models.din import DIN, DINConfig
from recsys.models.fgcnn import FGCNN, FGCNNConfig

MODELS: dict[str, type[Any]] = {
    **CLASSIFIERS,
    "din": DIN,
    "fgcnn": FGCNN,
}

ModelConfig = Annotated[
    ClassifierConfig | DINConfig | FGCNNConfig,
    Field(discriminator="name"),
]

__all__ = ["CLASSIFIERS", "MODELS", "ModelConfig"]
