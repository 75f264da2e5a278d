"""Logarithmic transformation layer of AFN."""

from torch import Tensor, nn

from recsys.layers.batch_norm import BatchNorm
from recsys.layers.init import linear


class LogarithmicLayer(nn.Module):
    """Products of fields raised to learned powers: cross features of any, learned, order.

    Neuron k of coordinate d is ``exp(sum_f w_kf ln |x_fd|) = prod_f |x_fd|^w_kf``. Cheng et al.,
    Adaptive Factorization Network, AAAI 2020, https://arxiv.org/abs/1909.03276. As there, the
    logarithms are batch-normalised per field and the products per neuron; as in FuxiCTR, ``|x|``
    is at least 1e-5.

    **Shape** ``(B, F, D) -> (B, D * neurons)``, the neurons of each coordinate side by side.

    **Example**

    >>> import torch
    >>> LogarithmicLayer(num_fields=3, dim=4, neurons=5)(torch.ones(2, 3, 4)).shape
    torch.Size([2, 20])
    """

    def __init__(self, *, num_fields: int, dim: int, neurons: int) -> None:
        super().__init__()
        self.output_dim = dim * neurons
        # Coordinates are rows here: one plain Linear and one plain norm serve them all.
        self.log_norm = BatchNorm(num_fields)
        self.powers = linear(num_fields, neurons, bias=False)
        self.norm = BatchNorm(neurons)

    def forward(self, x: Tensor) -> Tensor:
        logs = x.transpose(1, 2).flatten(0, 1).abs().clamp_min(1e-5).log()  # (B*D, F)
        products = self.powers(self.log_norm(logs)).exp()  # (B*D, K)
        return self.norm(products).view(x.shape[0], self.output_dim)  # (B, D*K)
