"""How the weights of a network start."""

from torch import nn


def linear(input_dim: int, output_dim: int, *, bias: bool = True) -> nn.Linear:
    """A Linear whose weight starts Xavier-normal and whose bias starts at zero, as in FuxiCTR.

    **Example**

    >>> linear(3, 2).bias.tolist()
    [0.0, 0.0]
    """
    layer = nn.Linear(input_dim, output_dim, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
