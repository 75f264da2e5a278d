"""IPNN: the product-based neural network with inner products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import PairDots
from recsys.models.deep import DeepConfig
from recsys.types import Batch, FieldSpec


class PNNConfig(DeepConfig):
    """The keys of `DeepConfig`."""

    name: Literal["pnn"] = "pnn"


class PNN(nn.Module):
    """An MLP on the field vectors and the inner products of all their pairs.

    ``logit = MLP([e_1, ..., e_F, <e_1, e_2>, ..., <e_{F-1}, e_F>])``. Qu et al., Product-based
    Neural Networks, ICDM 2016, https://arxiv.org/abs/1611.00144. As in FuxiCTR, the products enter
    the first layer as they are; the paper first multiplies them by factorised weights.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = PNNConfig

    def __init__(
        self,
        config: PNNConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        count = len(fields)
        self.products = PairDots(num_fields=count)
        self.mlp = config.mlp(count * layers["embedding"].dim + count * (count - 1) // 2)

    @staticmethod
    def tables(config: PNNConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> PNNConfig:
        """A tiny config for the laws."""
        return PNNConfig(hidden_units=(8, 8))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch)  # (B, F, D)
        joint = torch.cat([x.flatten(1), self.products(x)], dim=1)  # (B, F*D + F*(F-1)/2)
        return self.mlp(joint).squeeze(1)  # (B,)
