"""From a config and fitted features to the modules of a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import nn

from recsys.config import RunConfig
from recsys.embeddings import EmbeddingLayer, IdMap, build_embeddings
from recsys.features import FeatureEncoder, Features
from recsys.models import MODELS
from recsys.types import MemoryReport


@dataclass(frozen=True)
class Assembly:
    """The modules of one run: raw `Batch` -> ``encoder`` -> ``id_map`` -> ``model`` -> logits."""

    encoder: FeatureEncoder
    id_map: IdMap
    model: nn.Module

    @property
    def layers(self) -> list[EmbeddingLayer]:
        """Every embedding layer of the model."""
        return [m for m in self.model.modules() if isinstance(m, EmbeddingLayer)]

    def memory(self) -> MemoryReport:
        """Sizes of all tables, those of first-order weights included."""
        return reduce(add, (layer.memory() for layer in self.layers))

    def finalise(self) -> Assembly:
        """Puts the serving form of every embedding layer into the model; outputs stay equal."""
        for parent in list(self.model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, EmbeddingLayer):
                    setattr(parent, name, child.finalise())
        return self


def build(config: RunConfig, features: Features) -> Assembly:
    """Builds all modules from ``config.seed``: same config and features, same weights."""
    torch.manual_seed(config.seed)
    kind = MODELS[config.model.name]
    dims = kind.tables(config.model, config.embedding.embedding_dim)
    id_map, layers = build_embeddings(config.embedding, features.fields, dims, train=config.train)
    model = kind(config.model, features.fields, layers)
    return Assembly(features.encoder(), id_map, model)
