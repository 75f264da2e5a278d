"""The CTR models that classify field vectors: every one can also stand behind an augmenter."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from recsys.models.autoint import AutoInt, AutoIntConfig
from recsys.models.dcnv2 import DCNv2, DCNv2Config
from recsys.models.deepfm import DeepFM, DeepFMConfig
from recsys.models.dnn import DNN, DNNConfig
from recsys.models.fm import FactorizationMachine, FMConfig
from recsys.models.lr import LR, LRConfig

CLASSIFIERS: dict[str, type[Any]] = {
    "lr": LR,
    "fm": FactorizationMachine,
    "dnn": DNN,
    "deepfm": DeepFM,
    "dcnv2": DCNv2,
    "autoint": AutoInt,
}

ClassifierConfig = Annotated[
    LRConfig | FMConfig | DNNConfig | DeepFMConfig | DCNv2Config | AutoIntConfig,
    Field(discriminator="name"),
]
