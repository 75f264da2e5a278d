"""DLRM: deep learning recommendation model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import List, Literal

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import MLP, PairDots
from recsys.layers.mlp import activation_layer
from recsys.models.deep import DeepConfig, Widths
from recsys.types import Batch, FieldSpec, InputError


class DLRMConfig(DeepConfig):
    """``hidden_units`` and ``dropout``: of the top MLP; ``bottom_units``: hidden units of the MLP
    of the numeric fields, which has no dropout; ``activation`` and ``batch_norm``: of both.

    ``interaction``: what the top MLP reads of the vectors, their pairwise inner products (``dot``)
    or the vectors themselves (``cat``).
    """

    name: Literal["dlrm"] = "dlrm"
    bottom_units: Widths = (64, 64, 64)
    interaction: Literal["dot", "cat"] = "dot"


class DLRM(nn.Module):
    """Pairwise inner products of the vectors of ids and one dense vector of all numeric fields.

    ``d = relu(MLP_bottom(numerics))`` and ``logit = MLP_top([d, <v_i, v_j> for i < j])`` over
    ``v = [ids and lists, d]``. Naumov et al., 2019, https://arxiv.org/abs/1906.00091, in the form
    of FuxiCTR: without numeric fields there is no bottom MLP and no ``d``, and ``interaction: cat``
    is a plain MLP.

    The paper's bottom MLP reads raw numbers. This one reads the numeric fields' vectors from the
    embedding layer, ``x_f v_f``, side by side: together with its first Linear a factorised linear
    map of the same numbers, in which a missing value has a vector of its own instead of being 0.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = DLRMConfig

    def __init__(
        self, config: DLRMConfig, fields: Sequence[FieldSpec], layers: Mapping[str, EmbeddingLayer]
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        width = layers["embedding"].dim
        numeric = [i for i, field in enumerate(fields) if field.kind == "numeric"]
        self.first = numeric[0] if numeric else 0
        self.numerics = len(numeric)
        assert numeric == list(range(self.first, self.first + self.numerics)), numeric
        # Optional parts are lists of none or one: the graph holds no dead branch.
        self.bottom = nn.ModuleList()
        if numeric:
            mlp = MLP(
                input_dim=len(numeric) * width,
                hidden_units=config.bottom_units,
                activation=config.activation,
                batch_norm=config.batch_norm,
                output_dim=width,
            )
            self.bottom.append(nn.Sequential(mlp, activation_layer(config.activation, width)))
        vectors = len(fields) - len(numeric) + len(self.bottom)
        self.dot = config.interaction == "dot"
        if self.dot and vectors + len(self.bottom) < 2:
            raise InputError(
                "model: dlrm with interaction dot needs two fields (or a numeric one); "
                "add features or set model.interaction to cat"
            )
        self.interact = PairDots(num_fields=vectors) if self.dot else nn.Flatten(1)
        pairs = vectors * (vectors - 1) // 2
        self.top = config.mlp(pairs + len(self.bottom) * width if self.dot else vectors * width)

    @staticmethod
    def tables(config: DLRMConfig, embedding_dim: int) -> dict[str, int]:  # noqa: ARG004
        """The embedding layers it asks for, name -> width."""
        return {"embedding": embedding_dim}

    @staticmethod
    def example() -> DLRMConfig:
        """A tiny config for the laws."""
        return DLRMConfig(hidden_units=(16, 16), bottom_units=(16,))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch)  # (B, F, D)
        top: List[Tensor] = []
        for bottom in self.bottom:
            after = self.first + self.numerics
            d = bottom(x[:, self.first : after].flatten(1))  # (B, D)
            x = torch.cat([x[:, : self.first], x[:, after:], d.unsqueeze(1)], dim=1)  # (B, V, D)
            if self.dot:
                top.append(d)
        top.append(self.interact(x))  # (B, V (V-1) / 2), or (B, V*D)
        return self.top(torch.cat(top, dim=1)).squeeze(1)  # (B,)
