"""The settings of a model's MLP, under the same keys in every model that has one."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from recsys.layers import MLP, Activation
from recsys.types import FrozenConfig

Probability = Annotated[float, Field(ge=0, lt=1)]
"""Of dropping something."""

Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
"""One number per layer, of at least one layer."""


class DeepConfig(FrozenConfig):
    """``dropout``: probability of dropping a hidden unit."""

    hidden_units: Widths = (64, 64, 64)
    activation: Activation = "relu"
    dropout: Probability = 0.0
    batch_norm: bool = False

    def mlp(self, input_dim: int, output_dim: int | None = 1) -> MLP:
        """The MLP of this config: (B, input_dim) -> (B, output_dim), or without a last Linear
        (``None``) -> (B, hidden_units[-1])."""
        return MLP(
            input_dim=input_dim,
            hidden_units=self.hidden_units,
            activation=self.activation,
            dropout=self.dropout,
            batch_norm=self.batch_norm,
            output_dim=output_dim,
        )
