"""The products of attention with its weights, forward and backward, in float32 or bfloat16.

The projections of a vector lie side by side, Q, K, V (and R), head by head, W = blocks x d' numbers
in all: one wide product makes them, at 63 to 90 GFLOP/s a core, where one for each block and head
of 16 columns reaches 50 (AMD EPYC).

In bfloat16 (``narrow``) the operands of the products with weights are rounded to it, as autocast
does in `torch.nn.Linear`; sums inside a product, and all that lies between, stay float32. A CPU
with AMX multiplies bfloat16 several times faster, but rounding costs two passes over the
projections, so it pays from an input width of 64 on (`worth_narrowing`).
"""

import math

import torch
from torch import Tensor


def worth_narrowing(width: int) -> bool:
    """Whether bfloat16 products pay for an input of ``width``.

    Forward and backward products of 4096 rows in bfloat16 and float32: 40,960 vectors, width 128,
    39 and 73 ms; width 64, 18 and 22 ms; 160,000 vectors of width 32, 32 and 23 ms.
    """
    return width >= 64


def scaled_weight(weight: Tensor, factor: float) -> Tensor:
    """``(blocks, d', D) -> (blocks d', D)``, Q times ``factor / ln 2``, for powers of 2."""
    scaled = torch.cat([weight[:1] * (factor / math.log(2.0)), weight[1:]])
    return scaled.flatten(0, 1)


class Products:
    """Products of chunks of ``vectors`` vectors (rows x fields) with ``weight`` (W, D).

    ``projected`` (vectors, W) holds what `project` made last."""

    def __init__(self, weight: Tensor, vectors: int, narrow: bool) -> None:
        total, width = weight.shape[0], weight.shape[1]
        self.narrow = narrow
        self.weight = weight.to(torch.bfloat16) if narrow else weight
        self.projected = weight.new_empty(vectors, total)
        size = vectors if narrow else 0
        self.x = self.weight.new_empty(size, width)
        self.wide = self.weight.new_empty(size, total)
        self.grad_x = self.weight.new_empty(size, width)

    def project(self, x: Tensor, relu: bool) -> None:
        """Vectors ``(M, D)`` times all weights, into ``projected``."""
        if self.narrow:
            self.x.copy_(x)
            torch.mm(self.x, self.weight.t(), out=self.wide)
            self.projected.copy_(self.wide)
        else:
            torch.mm(x, self.weight.t(), out=self.projected)
        if relu:
            self.projected.relu_()

    def backward(self, grads: Tensor, x: Tensor, grad_x: Tensor, grad_weight: Tensor) -> None:
        """From ``grads`` (M, W) at `project` of ``x``: adds to ``grad_x`` (M, D) and to
        ``grad_weight`` (W, D)."""
        if self.narrow:
            self.wide.copy_(grads)
            torch.mm(self.wide, self.weight, out=self.grad_x)
            grad_x.add_(self.grad_x)
            self.x.copy_(x)
            grad_weight.add_(torch.mm(self.wide.t(), self.x))
        else:
            grad_x.addmm_(grads, self.weight)
            grad_weight.addmm_(grads.t(), x)
