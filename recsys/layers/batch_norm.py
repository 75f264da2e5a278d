"""Batch normalisation that also trains on a batch of one row."""

import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation over rows that also trains on a batch of one row.

    One row has no variance; the last batch of an epoch may still be one row. It is normalised with
    the running statistics, which it leaves as they are. The momentum is 0.1 as in torch.

    **Shape** ``(B, N)`` or ``(B, N, ...)``, as given.

    **Example**

    >>> import torch
    >>> BatchNorm(3).train()(torch.ones(1, 3)).shape
    torch.Size([1, 3])
    """

    def __init__(self, units: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(units, eps=eps, affine=affine)  # no other option: forward would ignore it

    def forward(self, input: Tensor) -> Tensor:
        batch_statistics = self.training and input.shape[0] > 1
        return F.batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            batch_statistics,
            0.1,
            self.eps,
        )
