"""xDeepFM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import CIN
from recsys.layers.init import linear
from recsys.models.deep import DeepConfig, Widths
from recsys.types import Batch, FieldSpec


class XDeepFMConfig(DeepConfig):
    """``cin_units``: feature maps of each layer of the `CIN`; the other keys are the MLP's."""

    name: Literal["xdeepfm"] = "xdeepfm"
    cin_units: Widths = (16, 16, 16)


class XDeepFM(nn.Module):
    """A compressed interaction network, an MLP and a linear model on the same fields.

    ``logit = sum_f w_f + w . CIN(e) + b + MLP([e_1, ..., e_F])``. Lian et al., xDeepFM, KDD 2018,
    https://arxiv.org/abs/1803.05170, in the form of FuxiCTR (see `CIN`).

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = XDeepFMConfig

    def __init__(
        self,
        config: XDeepFMConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.first_order = layers["first_order"]
        self.embedding = layers["embedding"]
        self.cin = CIN(num_fields=len(fields), units=config.cin_units)
        self.output = linear(self.cin.output_dim, 1)
        self.mlp = config.mlp(len(fields) * layers["embedding"].dim)

    @staticmethod
    def tables(config: XDeepFMConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim, "first_order": 1}

    @staticmethod
    def example() -> XDeepFMConfig:
        """A tiny config for the laws."""
        return XDeepFMConfig(cin_units=(6, 4), hidden_units=(8, 8))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch)  # (B, F, D)
        first = self.first_order(batch).flatten(1).sum(dim=1)  # (B,)
        crossed = self.output(self.cin(x)).squeeze(1)  # (B,)
        return first + crossed + self.mlp(x.flatten(1)).squeeze(1)  # (B,)
