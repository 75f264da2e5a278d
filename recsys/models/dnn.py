"""Deep neural network on concatenated embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import MLP, Activation
from recsys.types import Batch, FieldSpec, FrozenConfig


class DNNConfig(FrozenConfig):
    """``dropout``: probability of dropping a hidden unit."""

    name: Literal["dnn"] = "dnn"
    hidden_units: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64, 64)
    activation: Activation = "relu"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batch_norm: bool = False


class DNN(nn.Module):
    """``logit = MLP([e_1, ..., e_F])``.

    Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016,
    https://doi.org/10.1145/2959100.2959190.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = DNNConfig

    def __init__(
        self, config: DNNConfig, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        self.mlp = MLP(
            input_dim=len(fields) * layers["embedding"].dim,
            hidden_units=config.hidden_units,
            activation=config.activation,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
            output_dim=1,
        )

    @staticmethod
    def tables(config: DNNConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> DNNConfig:
        """A tiny config for the laws."""
        return DNNConfig(hidden_units=(8, 8))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch).flatten(1)  # (B, F*D)
        return self.mlp(x).squeeze(1)  # (B,)
