"""Factorisation machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import FM
from recsys.types import Batch, FieldSpec, FrozenConfig


class FMConfig(FrozenConfig):
    """A factorisation machine has no settings beyond the width of its table."""

    name: Literal["fm"] = "fm"


class FactorizationMachine(nn.Module):
    """First-order weights and all pairwise inner products of field vectors.

    ``logit = b + sum_f w_f + sum_{i<j} <e_i, e_j>``. Rendle, Factorization Machines, ICDM 2010,
    https://doi.org/10.1109/ICDM.2010.127.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = FMConfig

    def __init__(
        self, config: FMConfig, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        self.first_order = layers["first_order"]
        self.embedding = layers["embedding"]
        self.pairs = FM()
        self.bias = nn.Parameter(torch.zeros(1))

    @staticmethod
    def tables(config: FMConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim, "first_order": 1}

    @staticmethod
    def example() -> FMConfig:
        """A tiny config for the laws."""
        return FMConfig()

    def forward(self, batch: Batch) -> Tensor:
        first = self.first_order(batch).flatten(1).sum(dim=1) + self.bias  # (B,)
        return first + self.pairs(self.embedding(batch))  # (B,)
