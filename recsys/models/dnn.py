"""Deep neural network on concatenated embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.models.deep import DeepConfig
from recsys.types import Batch, FieldSpec


class DNNConfig(DeepConfig):
    """The keys of `DeepConfig`."""

    name: Literal["dnn"] = "dnn"


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
        self.mlp = config.mlp(len(fields) * layers["embedding"].dim)

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
