"""Products of all pairs of fields."""

import torch
from torch import Tensor, nn


class PairDots(nn.Module):
    """Inner products ``<x_i, x_j>`` of all pairs i < j, in the order (0, 1), (0, 2), ..., (1, 2).

    **Shape** ``(B, F, D) -> (B, F (F - 1) / 2)``.

    **Example**

    >>> PairDots(num_fields=3)(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [0.0, 1.0]]]))
    tensor([[11.,  2.,  4.]])
    """

    upper: Tensor

    def __init__(self, *, num_fields: int) -> None:
        super().__init__()
        i, j = torch.triu_indices(num_fields, num_fields, 1)
        self.register_buffer("upper", i * num_fields + j, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        dots = torch.bmm(x, x.transpose(1, 2))  # (B, F, F)
        return dots.flatten(1).index_select(1, self.upper)  # (B, F (F - 1) / 2)


class PairProducts(nn.Module):
    """Element-wise products ``x_i * x_j`` of all pairs i < j, in the order of `PairDots`.

    **Shape** ``(B, F, D) -> (B, F (F - 1) / 2, D)``.

    **Example**

    >>> PairProducts(num_fields=2)(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    tensor([[[3., 8.]]])
    """

    left: Tensor
    right: Tensor

    def __init__(self, *, num_fields: int) -> None:
        super().__init__()
        left, right = torch.triu_indices(num_fields, num_fields, 1)
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.left) * x.index_select(1, self.right)  # (B, P, D)
