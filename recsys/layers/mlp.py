"""Multi-layer perceptron."""

from collections.abc import Sequence
from typing import Literal, Optional

from torch import Tensor, nn

from recsys.layers.batch_norm import BatchNorm
from recsys.layers.dice import Dice
from recsys.layers.dropout import Dropout
from recsys.layers.init import linear

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "dice"]


def activation_layer(name: Activation, units: int) -> nn.Module:
    """The module of a named activation for (B, units). Rectifiers work in place: neither Linear nor
    batch normalisation needs its output again in the backward pass."""
    if name == "dice":
        return Dice(units)
    layers: dict[str, nn.Module] = {
        "relu": nn.ReLU(inplace=True),
        "leaky_relu": nn.LeakyReLU(inplace=True),
        "gelu": nn.GELU(),
        "silu": nn.SiLU(),
        "tanh": nn.Tanh(),
        "sigmoid": nn.Sigmoid(),
    }
    return layers[name]


class MLP(nn.Module):
    """Hidden layers Linear -> batch norm -> activation -> dropout, in FuxiCTR's order.

    ``output_dim`` adds a last plain Linear; ``None`` ends after the last hidden layer.
    ``dropout`` is the probability of dropping a unit.

    **Shape** ``(B, input_dim) -> (B, output_dim)``, or ``(B, hidden_units[-1])`` without one.

    **Example**

    >>> import torch
    >>> MLP(input_dim=4, hidden_units=(8, 8), output_dim=1)(torch.zeros(2, 4)).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        *,
        input_dim: int,
        hidden_units: Sequence[int],
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        output_dim: Optional[int] = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = input_dim
        for units in hidden_units:
            layers.append(linear(width, units))
            if batch_norm:
                layers.append(BatchNorm(units))
            layers.append(activation_layer(activation, units))
            if dropout > 0:
                layers.append(Dropout(dropout))
            width = units
        if output_dim is not None:
            layers.append(linear(width, output_dim))
            width = output_dim
        self.output_dim = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, output_dim)
