"""Squeeze-and-excitation: how much each field matters in this row."""

from typing import Literal

from torch import Tensor, nn

from recsys.layers.init import linear

Excitation = Literal["relu", "sigmoid"]


class SENET(nn.Module):
    """Field vectors times a weight of their own: ``v_f = a_f x_f``.

    ``a = g(W_2 relu(W_1 z))`` with ``z_f`` the mean of ``x_f``; ``W_1`` has
    ``max(1, F // reduction_ratio)`` rows. ``excitation``: the function g; ``relu`` is the paper's,
    but with few fields it may start at (or fall to) zero for all rows and then learns nothing,
    which ``sigmoid`` cannot. Huang et al., FiBiNET, RecSys 2019,
    https://arxiv.org/abs/1905.09433, after Hu et al., Squeeze-and-Excitation Networks, CVPR 2018,
    https://arxiv.org/abs/1709.01507.

    **Shape** ``(B, F, D) -> (B, F, D)``.

    **Example**

    >>> import torch
    >>> SENET(num_fields=4, reduction_ratio=2)(torch.zeros(2, 4, 8)).shape
    torch.Size([2, 4, 8])
    """

    def __init__(
        self, *, num_fields: int, reduction_ratio: int = 3, excitation: Excitation = "relu"
    ) -> None:
        super().__init__()
        reduced = max(1, num_fields // reduction_ratio)
        self.weights = nn.Sequential(
            linear(num_fields, reduced, bias=False),
            nn.ReLU(inplace=True),
            linear(reduced, num_fields, bias=False),
            nn.ReLU(inplace=True) if excitation == "relu" else nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weights(x.mean(dim=2)).unsqueeze(2)  # (B, F, D)
