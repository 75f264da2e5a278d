"""AFM: attentional factorisation machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import PairProducts
from recsys.layers.dropout import Dropout
from recsys.layers.init import linear
from recsys.models.deep import Probability
from recsys.types import Batch, FieldSpec, FrozenConfig, InputError


class AFMConfig(FrozenConfig):
    """``attention_dim``: hidden units of the attention network. ``attention_dropout``: probability
    of dropping a pair's weight; ``dropout``: of dropping a coordinate of the pooled pairs."""

    name: Literal["afm"] = "afm"
    attention_dim: PositiveInt = 10
    attention_dropout: Probability = 0.0
    dropout: Probability = 0.0


class AFM(nn.Module):
    """A factorisation machine that learns how much each pair of fields matters in a row.

    ``logit = b + sum_f w_f + p . sum_{i<j} a_ij (e_i * e_j)`` with
    ``a = softmax_{i<j}(h . relu(W (e_i * e_j) + c))``. Xiao et al., Attentional Factorization
    Machines, IJCAI 2017, https://arxiv.org/abs/1708.04617. Dropout as in FuxiCTR: on the attention
    weights, too.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = AFMConfig

    def __init__(
        self, config: AFMConfig, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        if len(fields) < 2:
            raise InputError(
                "model: afm needs at least two features; add features or use model lr or dnn"
            )
        self.first_order = layers["first_order"]
        self.embedding = layers["embedding"]
        self.bias = nn.Parameter(torch.zeros(1))
        self.pairs = PairProducts(num_fields=len(fields))
        width = layers["embedding"].dim
        self.attention = nn.Sequential(
            linear(width, config.attention_dim),
            nn.ReLU(),
            linear(config.attention_dim, 1, bias=False),
            nn.Softmax(dim=1),
            Dropout(config.attention_dropout),
        )
        self.output = nn.Sequential(Dropout(config.dropout), linear(width, 1, bias=False))

    @staticmethod
    def tables(config: AFMConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim, "first_order": 1}

    @staticmethod
    def example() -> AFMConfig:
        """A tiny config for the laws."""
        return AFMConfig(attention_dim=8)

    def forward(self, batch: Batch) -> Tensor:
        first = self.first_order(batch).flatten(1).sum(dim=1) + self.bias  # (B,)
        pairs = self.pairs(self.embedding(batch))  # (B, P, D)
        weights = self.attention(pairs)  # (B, P, 1)
        pooled = torch.bmm(weights.transpose(1, 2), pairs).squeeze(1)  # (B, D)
        return first + self.output(pooled).squeeze(1)  # (B,)
