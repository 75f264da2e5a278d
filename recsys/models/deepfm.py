"""DeepFM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import FM
from recsys.models.deep import DeepConfig
from recsys.types import Batch, FieldSpec


class DeepFMConfig(DeepConfig):
    """The keys of `DeepConfig`."""

    name: Literal["deepfm"] = "deepfm"


class DeepFM(nn.Module):
    """A factorisation machine and an MLP on the same field vectors.

    ``logit = b + sum_f w_f + sum_{i<j} <e_i, e_j> + MLP([e_1, ..., e_F])``. Guo et al., DeepFM,
    IJCAI 2017, https://arxiv.org/abs/1703.04247.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = DeepFMConfig

    def __init__(
        self,
        config: DeepFMConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.first_order = layers["first_order"]
        self.embedding = layers["embedding"]
        self.pairs = FM()
        self.bias = nn.Parameter(torch.zeros(1))
        self.mlp = config.mlp(len(fields) * layers["embedding"].dim)

    @staticmethod
    def tables(config: DeepFMConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim, "first_order": 1}

    @staticmethod
    def example() -> DeepFMConfig:
        """A tiny config for the laws."""
        return DeepFMConfig(hidden_units=(8, 8))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch)  # (B, F, D)
        first = self.first_order(batch).flatten(1).sum(dim=1) + self.bias  # (B,)
        return first + self.pairs(x) + self.mlp(x.flatten(1)).squeeze(1)  # (B,)
