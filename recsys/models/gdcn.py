"""GDCN: gated deep and cross network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import GatedCrossNet
from recsys.layers.init import linear
from recsys.models.deep import DeepConfig
from recsys.types import Batch, FieldSpec


class GDCNConfig(DeepConfig):
    """``layers``: number of gated crosses. ``structure``: ``parallel`` (GDCN-P) joins the crosses
    and the MLP side by side, ``stacked`` (GDCN-S) puts the MLP on top of the crosses."""

    name: Literal["gdcn"] = "gdcn"
    structure: Literal["parallel", "stacked"] = "parallel"
    layers: PositiveInt = 3


class GDCN(nn.Module):
    """Crosses whose every coordinate passes an information gate, and an MLP.

    parallel: ``logit = w . [x_L, MLP(x_0)] + b``; stacked: ``logit = w . MLP(x_L) + b``, with
    ``x_L`` of `GatedCrossNet`. Wang et al., Towards Deeper, Lighter and Interpretable Cross
    Network for CTR Prediction, CIKM 2023, https://arxiv.org/abs/2311.04635. The paper's second
    part, widths of fields by the information of their vectors (FDO), is a table method and not
    here.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = GDCNConfig

    def __init__(
        self, config: GDCNConfig, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        width = len(fields) * layers["embedding"].dim
        self.crosses = GatedCrossNet(input_dim=width, layers=config.layers)
        self.parallel = config.structure == "parallel"
        self.mlp = config.mlp(width, output_dim=None)
        self.output = linear(self.mlp.output_dim + (width if self.parallel else 0), 1)

    @staticmethod
    def tables(config: GDCNConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> GDCNConfig:
        """A tiny config for the laws."""
        return GDCNConfig(layers=2, hidden_units=(8, 8))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch).flatten(1)  # (B, F*D)
        crossed = self.crosses(x)  # (B, F*D)
        if self.parallel:
            top = torch.cat([crossed, self.mlp(x)], dim=1)  # (B, F*D + hidden)
        else:
            top = self.mlp(crossed)  # (B, hidden)
        return self.output(top).squeeze(1)  # (B,)
