"""Logs of a teacher whose table is known: the logit of a row is the vector of its id times the
row's numbers, so that every entry of the table can be told from data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer, build_embeddings, full
from recsys.settings import TrainConfig
from recsys.testing.rows import MemoryRows
from recsys.types import Batch, FieldSpec

TRAIN = TrainConfig(batch_size=250, max_epochs=8, learning_rate=2e-2, patience=9)


class Reader(nn.Module):
    """``sum_f <vector of field f, numbers of field f>``: nothing to learn but the table."""

    def __init__(self, *, fields: int, values: int, dim: int, train: TrainConfig = TRAIN) -> None:
        super().__init__()
        torch.manual_seed(5)
        specs = tuple(FieldSpec(f"f{i}", "categorical", num_ids=values) for i in range(fields))
        config = full.FullConfig(method="full", embedding_dim=dim, init_std=1e-2)
        self.layer: EmbeddingLayer = build_embeddings(config, specs, {"v": dim}, train=train)[1][
            "v"
        ]
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Tensor:
        return self.bias + (self.layer(batch).flatten(1) * batch.floats).sum(1)  # (B,)


def lessons(teacher: Tensor, *, fields: int, count: int, seed: int) -> MemoryRows:
    """``teacher`` (fields * values, dim): one table after the other."""
    rng = np.random.default_rng(seed)
    values, dim = len(teacher) // fields, teacher.size(1)
    ids = torch.from_numpy(rng.integers(0, values, (count, fields)) + values * np.arange(fields))
    floats = torch.from_numpy(rng.normal(size=(count, fields * dim))).float()
    logit = (teacher[ids].flatten(1) * floats).sum(1)
    label = torch.from_numpy(rng.random(count)) < torch.sigmoid(logit)
    return MemoryRows(ids=ids, floats=floats, label=label.float())
