"""Second-order factorisation machine."""

from torch import Tensor, nn


class FM(nn.Module):
    """Sum of the inner products of all pairs of fields.

    ``sum_{i<j} <x_i, x_j> = (||sum_i x_i||^2 - sum_i ||x_i||^2) / 2``: linear in the number of
    fields. Rendle, Factorization Machines, ICDM 2010, https://doi.org/10.1109/ICDM.2010.127.

    **Shape** ``(B, F, D) -> (B,)``.

    **Example**

    >>> import torch
    >>> FM()(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))  # 1*3 + 2*4
    tensor([11.])
    """

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum(dim=1)  # (B, D)
        flat = x.flatten(1)  # (B, F*D)
        return 0.5 * ((total * total).sum(dim=1) - (flat * flat).sum(dim=1))  # (B,)
