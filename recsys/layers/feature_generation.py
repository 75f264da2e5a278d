"""New features from old ones, by convolution and recombination."""

from collections.abc import Sequence
from typing import List

import torch
from torch import Tensor, nn

from recsys.layers.field_convolution import FieldConvolution
from recsys.layers.init import linear


class FeatureGeneration(nn.Module):
    """FGCNN's generator: a stack of convolutions over fields, each followed by a recombination.

    With ``F_0 = F`` block i makes ``C_i`` channels of ``F_i = ceil(F_{i-1} / pooling_i)`` rows
    (`FieldConvolution`); one Linear from all of them and tanh give ``F_i * recombined_i`` new
    features. The convolution sees neighbours only, the recombination everything. The new features
    are as wide as ``output_dim`` says, whatever the width of the given ones. Liu et al., FGCNN,
    WWW 2019, https://arxiv.org/abs/1904.04447.

    **Shape** ``(B, F, D) -> (B, sum_i F_i * recombined_i, output_dim)``.

    **Example**

    >>> generate = FeatureGeneration(
    ...     num_fields=5, dim=4, output_dim=4, channels=[6, 7], heights=[3, 3], pooling=[2, 2],
    ...     recombined=[2, 1],
    ... )
    >>> generate.features  # ceil(5 / 2) * 2 + ceil(3 / 2) * 1
    8
    >>> generate(torch.zeros(2, 5, 4)).shape
    torch.Size([2, 8, 4])
    """

    def __init__(
        self,
        *,
        num_fields: int,
        dim: int,
        output_dim: int,
        channels: Sequence[int],
        heights: Sequence[int],
        pooling: Sequence[int],
        recombined: Sequence[int],
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.features = 0
        self.convolutions = nn.ModuleList()
        self.recombinations = nn.ModuleList()
        rows, width = num_fields, 1
        for count, height, pool, new in zip(channels, heights, pooling, recombined, strict=True):
            block = FieldConvolution(
                num_fields=rows,
                in_channels=width,
                out_channels=count,
                height=height,
                pooling=pool,
                batch_norm=batch_norm,
            )
            rows, width = block.out_fields, count
            self.convolutions.append(block)
            made = rows * new
            self.recombinations.append(linear(dim * block.output_dim, made * output_dim))
            self.features += made

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2)  # (B, D, F)
        made: List[Tensor] = []
        for convolve, recombine in zip(self.convolutions, self.recombinations, strict=True):
            h = convolve(h)  # (B, D, F_i * C_i)
            made.append(torch.tanh(recombine(h.flatten(1))))  # (B, F_i * r_i * D')
        return torch.cat(made, dim=1).unflatten(1, (self.features, self.output_dim))  # (B, M, D')
