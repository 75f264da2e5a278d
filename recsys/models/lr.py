"""Logistic regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.types import Batch, FieldSpec, FrozenConfig


class LRConfig(FrozenConfig):
    """Logistic regression has no settings."""

    name: Literal["lr"] = "lr"


class LR(nn.Module):
    """One weight per feature value and a bias: ``logit = b + sum_f w_f``.

    Richardson et al., Predicting Clicks, WWW 2007, https://doi.org/10.1145/1242572.1242643.
    Numeric fields enter as ``weight * value``.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = LRConfig

    def __init__(
        self, config: LRConfig, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        self.first_order = layers["first_order"]
        self.bias = nn.Parameter(torch.zeros(1))

    @staticmethod
    def tables(config: LRConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"first_order": 1}

    @staticmethod
    def example() -> LRConfig:
        """A tiny config for the laws."""
        return LRConfig()

    def forward(self, batch: Batch) -> Tensor:
        return self.first_order(batch).flatten(1).sum(dim=1) + self.bias  # (B,)
