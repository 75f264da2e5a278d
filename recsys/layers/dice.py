"""Dice, the data-adaptive activation of DIN."""

import torch
from torch import Tensor, nn

from recsys.layers.batch_norm import BatchNorm

EPS = 1e-8
"""Added to the variance, as in the official code (FuxiCTR: 1e-9)."""


class Dice(nn.Module):
    """``f(x) = p x + (1 - p) alpha x`` with ``p = sigmoid((x - mean) / sqrt(var + eps))``.

    PReLU whose bend lies at the mean of its input. ``mean`` and ``var`` are those of the batch in
    training and running ones after it (and for a batch of one row); ``alpha``, one per unit, starts
    at 0. Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018,
    https://arxiv.org/abs/1706.06978. Rows that are padding must be taken out before.

    **Shape** ``(B, units) -> (B, units)``.

    **Example**

    >>> import torch
    >>> Dice(3)(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.norm = BatchNorm(units, eps=EPS, affine=False)
        self.alpha = nn.Parameter(torch.zeros(units))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.norm(x))  # (B, N)
        return x * torch.addcmul(self.alpha, p, 1 - self.alpha)  # x (p + (1 - p) alpha), (B, N)
