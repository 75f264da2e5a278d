"""AFN and AFN+: adaptive factorisation network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import MLP, LogarithmicLayer
from recsys.layers.init import linear
from recsys.models.deep import DeepConfig, Probability
from recsys.types import Batch, FieldSpec


class AFNConfig(DeepConfig):
    """``log_neurons``: products of powers per coordinate; ``hidden_units`` and ``dropout``: of the
    MLP on them. ``deep_units`` and ``deep_dropout``: of the second MLP, which makes it AFN+ and has
    a table of its own; empty is AFN. ``activation`` and ``batch_norm``: of both MLPs (the
    logarithmic layer is always normalised).
    """

    name: Literal["afn"] = "afn"
    log_neurons: PositiveInt = 5
    deep_units: tuple[PositiveInt, ...] = ()
    deep_dropout: Probability = 0.0

    @model_validator(mode="after")
    def _no_dead_settings(self) -> AFNConfig:
        if self.deep_dropout > 0 and not self.deep_units:
            raise ValueError("deep_dropout belongs to the MLP of AFN+; remove it or set deep_units")
        return self


class AFN(nn.Module):
    """An MLP on learned products of powers of fields, with an optional second MLP (AFN+).

    AFN: ``logit = MLP(products(x))``, see `LogarithmicLayer`; AFN+: ``logit = w_1 MLP(products(x))
    + w_2 MLP_deep(flatten(x')) + b`` with ``x'`` from a second table. Cheng et al., Adaptive
    Factorization Network, AAAI 2020, https://arxiv.org/abs/1909.03276.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = AFNConfig

    def __init__(
        self, config: AFNConfig, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        self.products = LogarithmicLayer(
            num_fields=len(fields), dim=layers["embedding"].dim, neurons=config.log_neurons
        )
        self.mlp = config.mlp(self.products.output_dim)
        # Optional parts are lists of none or one: the graph holds no dead branch.
        self.deep_embedding = nn.ModuleList()
        self.deep = nn.ModuleList()
        self.mix = nn.ModuleList()
        if config.deep_units:
            self.deep_embedding.append(layers["deep_embedding"])
            raw = sum(field.kind != "generated" for field in fields)  # what the second table holds
            mlp = MLP(
                input_dim=raw * layers["deep_embedding"].dim,
                hidden_units=config.deep_units,
                activation=config.activation,
                dropout=config.deep_dropout,
                batch_norm=config.batch_norm,
                output_dim=1,
            )
            self.deep.append(mlp)
            self.mix.append(linear(2, 1))

    @staticmethod
    def tables(config: AFNConfig, embedding_dim: int) -> dict[str, int]:
        """The embedding layers it asks for, name -> width."""
        tables = {"embedding": embedding_dim}
        if config.deep_units:
            tables["deep_embedding"] = embedding_dim
        return tables

    @staticmethod
    def example() -> AFNConfig:
        """A tiny config for the laws."""
        return AFNConfig(log_neurons=8, hidden_units=(16, 16), deep_units=(8,))

    def forward(self, batch: Batch) -> Tensor:
        logits = self.mlp(self.products(self.embedding(batch)))  # (B, 1)
        for embedding, deep, mix in zip(self.deep_embedding, self.deep, self.mix, strict=True):
            second = deep(embedding(batch).flatten(1))  # (B, 1)
            logits = mix(torch.cat([logits, second], dim=1))  # (B, 1)
        return logits.squeeze(1)  # (B,)
