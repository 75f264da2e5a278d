"""DCN: deep and cross network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import CrossNet
from recsys.layers.init import linear
from recsys.models.deep import DeepConfig
from recsys.types import Batch, FieldSpec


class DCNConfig(DeepConfig):
    """``layers``: number of crosses; the other keys are the parallel MLP's."""

    name: Literal["dcn"] = "dcn"
    layers: PositiveInt = 3


class DCN(nn.Module):
    """Explicit crosses of rank one beside an MLP.

    ``x_{l+1} = x_0 (w_l . x_l) + b_l + x_l`` and ``logit = w . [x_L, MLP(x_0)] + b``. Wang et al.,
    Deep & Cross Network, ADKDD 2017, https://arxiv.org/abs/1708.05123.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = DCNConfig

    def __init__(
        self, config: DCNConfig, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        width = len(fields) * layers["embedding"].dim
        self.crosses = CrossNet(input_dim=width, layers=config.layers)
        self.mlp = config.mlp(width, output_dim=None)
        self.output = linear(width + self.mlp.output_dim, 1)

    @staticmethod
    def tables(config: DCNConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> DCNConfig:
        """A tiny config for the laws."""
        return DCNConfig(layers=2, hidden_units=(8, 8))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch).flatten(1)  # (B, F*D)
        top = torch.cat([self.crosses(x), self.mlp(x)], dim=1)  # (B, F*D + hidden)
        return self.output(top).squeeze(1)  # (B,)
