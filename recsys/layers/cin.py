"""Compressed interaction network of xDeepFM."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys.layers.init import linear


class CIN(nn.Module):
    """Vector-wise feature crosses of growing degree, summed over the vector.

    Feature map h of layer k, element by element, and what is read of it:

        X^k_h = sum_ij W^k_hij (X^0_i * X^{k-1}_j) + b^k_h        p^k_h = sum_d X^k_hd

    Lian et al., xDeepFM, KDD 2018, https://arxiv.org/abs/1803.05170, with FuxiCTR's bias and with
    no activation, which the paper found best. Every map goes both to the output and to the next
    layer.

    Only ``p`` is read of the last layer, and there the sum over the vector comes first:
    ``p_h = sum_ij W_hij <X^0_i, X_j> + D b_h``, D times less work than its feature maps.

    **Shape** ``(B, F, D) -> (B, sum of units)``: ``[p^1, p^2, ...]``.

    **Example**

    >>> CIN(num_fields=3, units=(5, 4))(torch.zeros(2, 3, 8)).shape
    torch.Size([2, 9])
    """

    def __init__(self, *, num_fields: int, units: Sequence[int]) -> None:
        super().__init__()
        self.output_dim = sum(units)
        widths = [num_fields, *units[:-1]]
        layers = [linear(width * num_fields, out) for width, out in zip(widths, units, strict=True)]
        self.hidden = nn.ModuleList(layers[:-1])
        self.last = layers[-1]

    def forward(self, x: Tensor) -> Tensor:
        x_0 = x.transpose(1, 2).contiguous()  # (B, D, F)
        maps = x_0  # (B, D, H)
        pooled: list[Tensor] = []
        for layer in self.hidden:
            products = (x_0.unsqueeze(3) * maps.unsqueeze(2)).flatten(2)  # (B, D, F*H)
            maps = layer(products)  # (B, D, H')
            pooled.append(maps.sum(dim=1))  # (B, H')
        dots = torch.bmm(x, maps).flatten(1)  # (B, F*H)
        bias = self.last.bias * x.shape[2]
        pooled.append(torch.addmm(bias, dots, self.last.weight.t()))  # (B, H')
        return torch.cat(pooled, dim=1)
