"""A small model over managed tables that its tests share."""

from __future__ import annotations

from typing import Any

import torch
from embedding_cases import build
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings import EmbeddingLayer, IdMap
from recsys.embeddings.managed_store import ManagedStore
from recsys.settings import TrainConfig
from recsys.training.optimizers import Optimizers, build_optimizers
from recsys.types import Batch, FieldSpec

OPEN = (FieldSpec("user", "categorical"),)


class Reader(nn.Module):
    """A linear reader of every layer."""

    def __init__(self, id_map: IdMap, layers: dict[str, EmbeddingLayer]) -> None:
        super().__init__()
        self.id_map = id_map
        self.layers = nn.ModuleDict(layers)
        width = sum(len(layer.fields) * layer.dim for layer in layers.values())
        self.head = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Tensor:
        rows = self.id_map(batch)
        vectors = [layer(rows).flatten(1) for layer in self.layers.values()]
        scores: Tensor = self.head(torch.cat(vectors, 1)).squeeze(1)
        return scores

    def store(self, layer: str = "main", table: int = 0) -> ManagedStore:
        found = self.layers[layer].tables[table]  # type: ignore[union-attr, index]
        assert isinstance(found, ManagedStore)
        return found


def reader(
    fields: tuple[FieldSpec, ...] = OPEN, dims: dict[str, int] | None = None, **keys: Any
) -> tuple[Reader, Optimizers]:
    train = {key: keys.pop(key) for key in list(keys) if key in TrainConfig.model_fields}
    train = {"learning_rate": 0.1, **train}
    made = build({"method": "managed", "admission": 1, **keys}, fields, dims, **train)
    model = Reader(*made)
    return model, build_optimizers(model, TrainConfig(**train))


def ids_of(*columns: list[int]) -> Batch:
    ids = torch.tensor(columns).T
    none = torch.zeros(len(ids), 0)
    return Batch(ids, none, [], none.long())


def step(model: Reader, optimizers: Optimizers, batch: Batch) -> None:
    optimizers.zero_grad()
    labels = torch.ones(len(batch.ids))
    F.binary_cross_entropy_with_logits(model(batch), labels).backward()
    optimizers.step()


def rows_of(model: Reader, ids: list[int], layer: str = "main") -> list[int]:
    return model.store(layer).rows_of(torch.tensor(ids)).tolist()
