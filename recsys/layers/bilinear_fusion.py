"""The two-stream fusion of FinalMLP."""

import torch
from torch import Tensor, nn

from recsys.layers.init import linear


class BilinearFusion(nn.Module):
    """``b + w_x . x + w_y . y + sum_h x_h^T W_h y_h``: one number from two vectors.

    Head h takes the h-th of ``heads`` equal pieces of ``x`` and of ``y``, so that the bilinear
    part holds ``x_dim * y_dim / heads`` weights. They start from N(0, 2 / (their number + 1)), the
    linear parts Xavier-normal, as in FuxiCTR (whose two biases are one here). Mao et al.,
    FinalMLP, AAAI 2023, https://arxiv.org/abs/2304.00902.

    **Shape** ``x (B, x_dim), y (B, y_dim) -> (B,)``.

    **Example**

    >>> fusion = BilinearFusion(x_dim=6, y_dim=4, heads=2)
    >>> fusion(torch.zeros(3, 6), torch.zeros(3, 4)).tolist()
    [0.0, 0.0, 0.0]
    """

    def __init__(self, *, x_dim: int, y_dim: int, heads: int = 1) -> None:
        super().__init__()
        assert x_dim % heads == 0, (x_dim, heads)
        assert y_dim % heads == 0, (y_dim, heads)
        self.heads = heads
        self.linear_x = linear(x_dim, 1)
        self.linear_y = linear(y_dim, 1, bias=False)
        self.weight = nn.Parameter(torch.empty(heads, x_dim // heads, y_dim // heads))
        nn.init.normal_(self.weight, std=(2 / (self.weight.numel() + 1)) ** 0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x_heads = x.unflatten(1, (self.heads, -1)).transpose(0, 1)  # (H, B, x_dim / H)
        y_heads = y.unflatten(1, (self.heads, -1)).transpose(0, 1)  # (H, B, y_dim / H)
        pairs = (torch.bmm(x_heads, self.weight) * y_heads).sum(2).sum(0)  # (B,)
        return pairs + self.linear_x(x).squeeze(1) + self.linear_y(y).squeeze(1)  # (B,)
