"""Wide & Deep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.models.deep import DeepConfig
from recsys.types import Batch, FieldSpec


class WideDeepConfig(DeepConfig):
    """The keys of `DeepConfig`."""

    name: Literal["wide_deep"] = "wide_deep"


class WideDeep(nn.Module):
    """A linear model and an MLP on field vectors, trained together.

    ``logit = sum_f w_f + MLP([e_1, ..., e_F])``; the bias is the MLP's. Cheng et al., Wide & Deep
    Learning, DLRS 2016, https://arxiv.org/abs/1606.07792, in the form of FuxiCTR: the wide part
    sees the fields and no hand-made cross products (give those as features), and one optimiser
    trains both parts where the paper has FTRL for the wide one.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = WideDeepConfig

    def __init__(
        self,
        config: WideDeepConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.first_order = layers["first_order"]
        self.embedding = layers["embedding"]
        self.mlp = config.mlp(len(fields) * layers["embedding"].dim)

    @staticmethod
    def tables(config: WideDeepConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim, "first_order": 1}

    @staticmethod
    def example() -> WideDeepConfig:
        """A tiny config for the laws."""
        return WideDeepConfig(hidden_units=(8, 8))

    def forward(self, batch: Batch) -> Tensor:
        wide = self.first_order(batch).flatten(1).sum(dim=1)  # (B,)
        x = self.embedding(batch).flatten(1)  # (B, F*D)
        return wide + self.mlp(x).squeeze(1)  # (B,)
