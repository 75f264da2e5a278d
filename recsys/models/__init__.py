"""CTR models: ``forward(batch) -> logits (B,)`` and nothing else.

A model states which embedding layers it wants (``tables``), is handed them, and knows no loss,
optimiser, path or metric. To add one: one file, one line in each list below, one config.

Each entry of `MODELS` is a module class with, beside ``forward``: ``Config``, its frozen config;
``tables(config, embedding_dim)``, the embedding layers it asks for as name -> width;
``__init__(config, fields, layers)``; ``example()``, a tiny config for the laws.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from recsys.models.autoint import AutoInt, AutoIntConfig
from recsys.models.dcnv2 import DCNv2, DCNv2Config
from recsys.models.deepfm import DeepFM, DeepFMConfig
from recsys.models.dnn import DNN, DNNConfig
from recsys.models.fm import FactorizationMachine, FMConfig
from recsys.models.lr import LR, LRConfig

MODELS: dict[str, type[Any]] = {
    "lr": LR,
    "fm": FactorizationMachine,
    "dnn": DNN,
    "deepfm": DeepFM,
    "dcnv2": DCNv2,
    "autoint": AutoInt,
}

ModelConfig = Annotated[
    LRConfig | FMConfig | DNNConfig | DeepFMConfig | DCNv2Config | AutoIntConfig,
    Field(discriminator="name"),
]

__all__ = ["MODELS", "ModelConfig"]
