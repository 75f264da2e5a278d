"""The factorised interaction layer of FinalNet, and blocks of such layers."""

from collections.abc import Sequence
from typing import Literal, Optional

import torch
from torch import Tensor, nn

from recsys.layers.batch_norm import BatchNorm
from recsys.layers.dropout import Dropout
from recsys.layers.init import linear
from recsys.layers.mlp import Activation, activation_layer

Residual = Literal["concat", "sum"]


class FactorizedInteraction(nn.Module):
    """A Linear with products of its outputs: each layer doubles the degree of its polynomial.

    ``[h_2, h_1] = W x + b``; ``residual`` ``concat`` gives ``[h_2, h_1 * h_2]`` with the weights
    of a plain Linear (``output_dim`` must be even), ``sum`` gives ``h_2 + h_1 * h_2`` with twice
    as many. Zhu et al., FINAL, SIGIR 2023, https://doi.org/10.1145/3539618.3591988.

    **Shape** ``(B, input_dim) -> (B, output_dim)``.

    **Example**

    >>> FactorizedInteraction(input_dim=3, output_dim=4)(torch.zeros(2, 3)).shape
    torch.Size([2, 4])
    """

    def __init__(self, *, input_dim: int, output_dim: int, residual: Residual = "concat") -> None:
        super().__init__()
        self.concat = residual == "concat"
        assert not self.concat or output_dim % 2 == 0, output_dim
        self.linear = linear(input_dim, output_dim if self.concat else 2 * output_dim)

    def forward(self, x: Tensor) -> Tensor:
        h2, h1 = self.linear(x).chunk(2, dim=1)  # (B, output_dim / 2) or (B, output_dim) each
        if self.concat:
            return torch.cat([h2, h1 * h2], 1)  # (B, output_dim)
        return torch.addcmul(h2, h1, h2)  # (B, output_dim)


class FactorizedBlock(nn.Module):
    """Factorised interaction -> batch norm -> activation -> dropout, for each hidden width.

    ``activation``: ``None`` keeps the block polynomial. ``dropout``: probability of dropping a
    unit.

    **Shape** ``(B, input_dim) -> (B, hidden_units[-1])``.

    **Example**

    >>> FactorizedBlock(input_dim=4, hidden_units=(8, 6))(torch.zeros(2, 4)).shape
    torch.Size([2, 6])
    """

    def __init__(
        self,
        *,
        input_dim: int,
        hidden_units: Sequence[int],
        activation: Optional[Activation] = None,
        dropout: float = 0.0,
        batch_norm: bool = True,
        residual: Residual = "concat",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = input_dim
        for units in hidden_units:
            layers.append(
                FactorizedInteraction(input_dim=width, output_dim=units, residual=residual)
            )
            if batch_norm:
                layers.append(BatchNorm(units))
            if activation is not None:
                layers.append(activation_layer(activation, units))
            if dropout > 0:
                layers.append(Dropout(dropout))
            width = units
        self.output_dim = width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # (B, output_dim)


class FieldGate(nn.Module):
    """``[x, x * g]`` along the fields with ``g = W x + b``, W mixing fields, the same for each
    dimension. ``W`` starts from zeros and ``b`` from ones: a copy at first.

    **Shape** ``(B, F, D) -> (B, 2 F, D)``.

    **Example**

    >>> FieldGate(num_fields=1)(torch.tensor([[[3.0, 4.0]]])).tolist()
    [[[3.0, 4.0], [3.0, 4.0]]]
    """

    def __init__(self, *, num_fields: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_fields, num_fields)
        nn.init.zeros_(self.linear.weight)
        nn.init.ones_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.linear(x.transpose(1, 2)).transpose(1, 2)  # (B, F, D)
        return torch.cat([x, x * gates], 1)  # (B, 2 F, D)
