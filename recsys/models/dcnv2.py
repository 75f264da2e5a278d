"""DCN-V2: deep and cross network, second version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import MLP, Activation, CrossNetV2
from recsys.layers.init import linear
from recsys.models.deep import Probability, Widths
from recsys.types import Batch, FieldSpec, FrozenConfig


class DCNv2Config(FrozenConfig):
    """``layers``: number of crosses; ``low_rank``: rank of each cross matrix, ``None`` is full.

    ``structure``: ``parallel`` joins the crosses and an MLP side by side, ``stacked`` puts the MLP
    on top of the crosses, ``crossnet_only`` has no MLP. ``hidden_units`` of the MLP: ``None``
    takes 64, 64, 64 where there is one.
    """

    name: Literal["dcnv2"] = "dcnv2"
    structure: Literal["parallel", "stacked", "crossnet_only"] = "parallel"
    layers: PositiveInt = 3
    low_rank: PositiveInt | None = None
    hidden_units: Widths | None = None
    activation: Activation = "relu"
    dropout: Probability = 0.0
    batch_norm: bool = False

    @model_validator(mode="after")
    def _no_dead_settings(self) -> DCNv2Config:
        of_mlp = (self.hidden_units, self.activation, self.dropout, self.batch_norm)
        if self.structure == "crossnet_only" and of_mlp != (None, "relu", 0.0, False):
            raise ValueError(
                "structure crossnet_only has no MLP: remove hidden_units, activation, dropout and "
                "batch_norm, or choose structure parallel or stacked"
            )
        return self


class DCNv2(nn.Module):
    """Explicit crosses ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`` and an MLP.

    parallel: ``logit = w . [x_L, MLP(x_0)] + b``; stacked: ``logit = w . MLP(x_L) + b``;
    crossnet_only: ``logit = w . x_L + b``. Wang et al., DCN V2, WWW 2021,
    https://arxiv.org/abs/2008.13535.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = DCNv2Config

    def __init__(
        self, config: DCNv2Config, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        width = len(fields) * layers["embedding"].dim
        self.crosses = CrossNetV2(input_dim=width, layers=config.layers, low_rank=config.low_rank)
        self.parallel = config.structure == "parallel"
        self.mlp: nn.Module = nn.Identity()
        output_width = width
        if config.structure != "crossnet_only":
            mlp = MLP(
                input_dim=width,
                hidden_units=config.hidden_units or (64, 64, 64),
                activation=config.activation,
                dropout=config.dropout,
                batch_norm=config.batch_norm,
            )
            output_width = mlp.output_dim + (width if self.parallel else 0)
            self.mlp = mlp
        self.output = linear(output_width, 1)

    @staticmethod
    def tables(config: DCNv2Config, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> DCNv2Config:
        """A tiny config for the laws."""
        return DCNv2Config(layers=2, hidden_units=(8, 8))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch).flatten(1)  # (B, F*D)
        crossed = self.crosses(x)  # (B, F*D)
        if self.parallel:
            top = torch.cat([crossed, self.mlp(x)], dim=1)  # (B, F*D + hidden)
        else:
            top = self.mlp(crossed)  # (B, hidden), or (B, F*D) without an MLP
        return self.output(top).squeeze(1)  # (B,)
