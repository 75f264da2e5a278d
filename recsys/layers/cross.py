"""Cross networks of DCN, DCN-V2 and GDCN."""

from typing import Optional

import torch
from torch import Tensor, nn

from recsys.layers.init import linear


class CrossNet(nn.Module):
    """Explicit feature crosses of rank one, one degree more per layer.

    ``x_{l+1} = x_0 (w_l . x_l) + b_l + x_l``. Every layer stays on a line,
    ``x_l = a_l x_0 + c_l`` with ``c_l = b_0 + ... + b_{l-1}`` the same in all rows, so one product
    with all ``w`` gives the scalars ``a``: ``a_{l+1} = a_l + a_l (w_l . x_0) + w_l . c_l``.
    Wang et al., Deep & Cross Network, ADKDD 2017, https://arxiv.org/abs/1708.05123.

    **Shape** ``(B, N) -> (B, N)``.

    **Example**

    >>> CrossNet(input_dim=6, layers=2)(torch.zeros(2, 6)).shape
    torch.Size([2, 6])
    """

    def __init__(self, *, input_dim: int, layers: int) -> None:
        super().__init__()
        # The start of a Linear from N to 1, as in FuxiCTR.
        self.weight = nn.Parameter(torch.randn(layers, input_dim) * (2 / (input_dim + 1)) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(layers, input_dim))

    def forward(self, x: Tensor) -> Tensor:
        after = self.bias.cumsum(0)  # (L, N): c_1 ... c_L
        offsets = (self.weight * (after - self.bias)).sum(dim=1)  # (L,): w_l . c_l
        gains = (x @ self.weight.t()).unbind(1)  # L times (B,): w_l . x_0
        scale = gains[0] + 1.0  # (B,): a_1, as a_0 = 1 and c_0 = 0
        for layer in range(1, len(gains)):
            scale = torch.addcmul(scale, scale, gains[layer]) + offsets[layer]
        return torch.addcmul(after[-1], x, scale.unsqueeze(1))  # (B, N)


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


class GatedCrossNet(nn.Module):
    """Crosses behind information gates: each layer weighs what it adds, coordinate by coordinate.

    ``x_{l+1} = x_0 * (W_l x_l + b_l) * sigmoid(G_l x_l) + x_l``. Wang et al., GDCN, CIKM 2023,
    https://arxiv.org/abs/2311.04635. ``b_l`` starts uniform in [0, 1), as in the authors' code:
    the crosses start as a gated ``x_0`` and grow from there.

    **Shape** ``(B, N) -> (B, N)``.

    **Example**

    >>> GatedCrossNet(input_dim=6, layers=2)(torch.zeros(2, 6)).shape
    torch.Size([2, 6])
    """

    def __init__(self, *, input_dim: int, layers: int) -> None:
        super().__init__()
        crosses = [linear(input_dim, input_dim) for _ in range(layers)]
        for cross in crosses:
            nn.init.uniform_(cross.bias)
        self.crosses = nn.ModuleList(crosses)
        self.gates = nn.ModuleList(linear(input_dim, input_dim, bias=False) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        crossed = x
        for cross, gate in zip(self.crosses, self.gates, strict=True):
            added = cross(crossed) * gate(crossed).sigmoid()  # (B, N)
            crossed = torch.addcmul(crossed, x, added)  # (B, N)
        return crossed
