"""AutoInt and AutoInt+."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import List, Literal, Tuple

from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers import InteractingLayer
from recsys.layers.attention import NormPlace, Residual
from recsys.layers.init import linear
from recsys.models.deep import DeepConfig, Probability
from recsys.types import Batch, FieldSpec


class AutoIntConfig(DeepConfig):
    """The defaults are those of FuxiCTR; the flags cover the other code bases.

    ``attention_dim``: total width of a layer over its ``heads``. ``hidden_units``: the MLP of
    AutoInt+; empty is AutoInt. ``dropout``: of hidden units of the MLP and, unless
    ``attention_dropout`` says otherwise, of attention weights. ``wide`` adds first-order weights.
    ``scale``, ``residual``, ``relu_projections``, ``layer_norm``: see `InteractingLayer`.
    Official TensorFlow code: ``scale: true, residual: projected, relu_projections: true,
    layer_norm: after_relu``. Paper: ``residual: projected``.
    """

    name: Literal["autoint"] = "autoint"
    layers: PositiveInt = 2
    heads: PositiveInt = 1
    attention_dim: PositiveInt = 8
    hidden_units: tuple[PositiveInt, ...] = (64, 64, 64)
    attention_dropout: Probability | None = None
    scale: bool = False
    residual: Residual = "auto"
    relu_projections: bool = False
    layer_norm: NormPlace = "none"
    wide: bool = False

    @model_validator(mode="after")
    def _can_work(self) -> AutoIntConfig:
        if self.attention_dim % self.heads:
            raise ValueError(
                f"attention_dim {self.attention_dim} is the total width of all heads and must be a "
                f"multiple of heads {self.heads}"
            )
        if not self.hidden_units:
            if self.batch_norm or self.activation != "relu":
                raise ValueError(
                    "batch_norm and activation belong to the MLP; remove them or give hidden_units"
                )
            if self.dropout > 0 and self.attention_dropout is not None:
                raise ValueError(
                    "dropout belongs to the MLP where there is an attention_dropout; remove one of "
                    "the two or give hidden_units"
                )
        return self


class AutoInt(nn.Module):
    """Self-attention over fields, with an optional MLP (AutoInt+) and an optional linear part.

    ``logit = w . flatten(X_L) + b [+ MLP(flatten(X_0))] [+ sum_f w_f]`` where ``X_0`` are the
    field vectors and ``X_l`` the output of interacting layer l (see `InteractingLayer`). Song et
    al., AutoInt, CIKM 2019, https://arxiv.org/abs/1810.11921.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    Config = AutoIntConfig

    def __init__(
        self,
        config: AutoIntConfig,
        fields: Sequence[FieldSpec],
        layers: Mapping[str, EmbeddingLayer],
    ) -> None:
        super().__init__()
        self.embedding = layers["embedding"]
        width = layers["embedding"].dim
        # Optional parts are lists of none or one: the graph holds no dead branch.
        self.deep = nn.ModuleList()
        if config.hidden_units:
            self.deep.append(config.mlp(len(fields) * width))
        self.wide = nn.ModuleList([layers["first_order"]] if config.wide else [])
        drop = config.dropout if config.attention_dropout is None else config.attention_dropout
        self.interacting = nn.ModuleList(
            InteractingLayer(
                input_dim=width if i == 0 else config.attention_dim,
                attention_dim=config.attention_dim,
                heads=config.heads,
                scale=config.scale,
                residual=config.residual,
                relu_projections=config.relu_projections,
                layer_norm=config.layer_norm,
                dropout=drop,
            )
            for i in range(config.layers)
        )
        self.output = linear(len(fields) * config.attention_dim, 1)

    @staticmethod
    def tables(config: AutoIntConfig, embedding_dim: int) -> dict[str, int]:
        """The embedding layers it asks for, name -> width."""
        tables = {"embedding": embedding_dim}
        if config.wide:
            tables["first_order"] = 1
        return tables

    @staticmethod
    def example() -> AutoIntConfig:
        """A tiny config for the laws."""
        return AutoIntConfig(layers=2, heads=2, attention_dim=8, hidden_units=(8,))

    def forward(self, batch: Batch) -> Tensor:
        x = self.embedding(batch)  # (B, F, D)
        h = x
        for layer in self.interacting:
            h = layer(h)  # (B, F, d')
        return self._logits(batch, x, h)  # (B,)

    def forward_with_attention(self, batch: Batch) -> Tuple[Tensor, List[Tensor]]:
        """Logits ``(B,)`` and, per layer, attention ``(B, H, F, F)``: ``[b, h, m, k]`` is how much
        field m attends to field k. For explanations, in eval mode."""
        x = self.embedding(batch)  # (B, F, D)
        h = x
        maps: List[Tensor] = []
        for layer in self.interacting:
            # (B, F, d'), (B, H, F, F)
            h, attention = layer.forward_with_attention(h)  # type: ignore[operator]
            maps.append(attention)
        return self._logits(batch, x, h), maps

    def _logits(self, batch: Batch, x: Tensor, h: Tensor) -> Tensor:
        logits = self.output(h.flatten(1)).squeeze(1)  # (B,)
        for mlp in self.deep:
            logits = logits + mlp(x.flatten(1)).squeeze(1)
        for first_order in self.wide:
            logits = logits + first_order(batch).flatten(1).sum(dim=1)
        return logits
