"""Cross network of DCN-V2."""

from typing import Optional

import torch
from torch import Tensor, nn

from recsys.layers.init import linear


class CrossNetV2(nn.Module):
    """Explicit feature crosses, one degree more per layer.

    ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l``. With ``low_rank`` r the matrix is ``U_l V_l`` of
    rank r: ``2 r N`` weights in place of ``N^2``. Wang et al., DCN V2, WWW 2021,
    https://arxiv.org/abs/2008.13535.

    **Shape** ``(B, N) -> (B, N)``.

    **Example**

    >>> CrossNetV2(input_dim=6, layers=2, low_rank=3)(torch.zeros(2, 6)).shape
    torch.Size([2, 6])
    """

    def __init__(self, *, input_dim: int, layers: int, low_rank: Optional[int] = None) -> None:
        super().__init__()
        if low_rank is None:
            crosses: list[nn.Module] = [linear(input_dim, input_dim) for _ in range(layers)]
        else:
            crosses = [
                nn.Sequential(linear(input_dim, low_rank, bias=False), linear(low_rank, input_dim))
                for _ in range(layers)
            ]
        self.crosses = nn.ModuleList(crosses)

    def forward(self, x: Tensor) -> Tensor:
        crossed = x
        for cross in self.crosses:
            crossed = torch.addcmul(crossed, x, cross(crossed))  # (B, N)
        return crossed
