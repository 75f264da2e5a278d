"""From a config and fitted features to the modules of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch
from torch import nn

from recsys.config import RunConfig
from recsys.embeddings import EmbeddingLayer, IdMap, build_embeddings
from recsys.features import FeatureEncoder, Features
from recsys.models import MODELS
from recsys.selection import SELECTIONS, Selection
from recsys.training.phase import Phase
from recsys.types import MemoryReport


@dataclass(frozen=True)
class Assembly:
    """The modules of one run: raw `Batch` -> ``encoder`` -> ``id_map`` -> ``model`` -> logits."""

    encoder: FeatureEncoder
    id_map: IdMap
    model: nn.Module
    selection: Selection | None = None

    @property
    def layers(self) -> list[EmbeddingLayer]:
        """Every embedding layer of the model."""
        return embedding_layers(self.model)

    def memory(self) -> MemoryReport:
        """Sizes of all tables, those of first-order weights included."""
        total = table_memory(self.model)
        extra = 0 if self.selection is None else self.selection.training_bytes()
        return replace(total, training_bytes=total.training_bytes + extra)

    def phases(self) -> Sequence[Phase] | None:
        """What the trainer runs; ``None``: one ordinary phase."""
        return None if self.selection is None else self.selection.phases()

    def finalise(self) -> Assembly:
        """Puts the serving form of every embedding layer into the model; outputs stay equal.

        With a selection the tables lose their closed rows, and another id map goes with them: use
        the modules of the result.
        """
        if self.selection is not None:
            id_map = self.selection.pack(self.model, self.id_map)
            return Assembly(self.encoder, id_map, self.model)
        finalise_layers(self.model)
        return self


def build(config: RunConfig, features: Features) -> Assembly:
    """Builds all modules from ``config.seed``: same config and features, same weights."""
    torch.manual_seed(config.seed)
    kind = MODELS[config.model.name]
    dims = kind.tables(config.model, config.embedding.embedding_dim)
    id_map, layers = build_embeddings(config.embedding, features.fields, dims, train=config.train)
    model = kind(config.model, features.fields, layers)
    selection = None
    if config.selection is not None:
        kind_of = SELECTIONS[config.selection.method]
        selection = kind_of(config.selection, embedding_layers(model), config.train)
    return Assembly(features.encoder(), id_map, model, selection)


def embedding_layers(model: nn.Module) -> list[EmbeddingLayer]:
    """Every embedding layer of a model."""
    return [m for m in model.modules() if isinstance(m, EmbeddingLayer)]


def table_memory(model: nn.Module) -> MemoryReport:
    """Sizes of all tables of a model, one of items that it encodes from text among them."""
    total: MemoryReport = reduce(add, (layer.memory() for layer in embedding_layers(model)))
    encoded = getattr(model, "encoded_items", None)
    return total if encoded is None else total + encoded()


def finalise_layers(model: nn.Module) -> None:
    """Puts the serving form of every embedding layer into the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, EmbeddingLayer):
                setattr(parent, name, child.finalise())
