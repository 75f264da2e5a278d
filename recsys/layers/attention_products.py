"""The products of attention with its weights, forward and backward, in float32 or bfloat16.

Projections lie head by head, ``(parts, n F, d)`` with parts = blocks x heads: a head of Q, K, V or
R is then one contiguous block, and one batched product does all heads of a chunk of rows.

In bfloat16 (``narrow``) the operands of the products with weights are rounded to it, as autocast
does in `torch.nn.Linear`; sums inside a product, and all that lies between, stay float32. A CPU
with AMX multiplies bfloat16 several times faster, but rounding and laying out anew cost two passes
over the projections, so it pays from an input width of 64 on (`worth_narrowing`).
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


def by_part(weight: Tensor, heads: int, factor: float) -> Tensor:
    """``(blocks, d', D) -> (parts, d, D)``, Q times ``factor / ln 2``, for powers of 2."""
    weight = torch.cat([weight[:1] * (factor / math.log(2.0)), weight[1:]])
    blocks, total, width = weight.shape[0], weight.shape[1], weight.shape[2]
    return weight.reshape(blocks * heads, total // heads, width)


class Products:
    """Products of chunks of up to ``vectors`` vectors (rows x fields) with ``parts`` (P, d, D)."""

    def __init__(self, parts: Tensor, vectors: int, narrow: bool) -> None:
        count, d, width = parts.shape[0], parts.shape[1], parts.shape[2]
        self.narrow = narrow
        self.parts = parts
        self.columns = parts.transpose(1, 2).contiguous()  # (P, D, d)
        self.projected = parts.new_empty(vectors * count * d)
        size = vectors if narrow else 0
        flat = parts.view(count * d, width)
        self.flat = flat.to(torch.bfloat16) if narrow else flat
        self.x = self.flat.new_empty(size, width)
        self.wide = self.flat.new_empty(size, count * d)
        self.grad_x = self.flat.new_empty(size, width)

    def project(self, x: Tensor, relu: bool) -> Tensor:
        """Vectors ``(M, D)`` through every part: ``(P, M, d)``, valid until the next call."""
        vectors = x.shape[0]
        count, d = self.parts.shape[0], self.parts.shape[1]
        projected = self.projected[: count * vectors * d].view(count, vectors, d)
        if self.narrow:
            narrow_x, wide = self.x[:vectors], self.wide[:vectors]
            narrow_x.copy_(x)
            torch.mm(narrow_x, self.flat.t(), out=wide)
            projected.copy_(wide.view(vectors, count, d).transpose(0, 1))
        else:
            torch.bmm(x.unsqueeze(0).expand(count, -1, -1), self.columns, out=projected)
        if relu:
            projected.relu_()
        return projected

    def backward(self, grads: Tensor, x: Tensor, grad_x: Tensor, grad_parts: Tensor) -> None:
        """From ``grads`` (P, M, d) at `project` of ``x``: adds to ``grad_x`` (M, D) and to
        ``grad_parts`` (P, d, D)."""
        count, vectors, d = grads.shape[0], grads.shape[1], grads.shape[2]
        if self.narrow:
            narrow_x, wide = self.x[:vectors], self.wide[:vectors]
            wide.view(vectors, count, d).transpose(0, 1).copy_(grads)
            narrow_grad = self.grad_x[:vectors]
            torch.mm(wide, self.flat, out=narrow_grad)
            grad_x.add_(narrow_grad)
            narrow_x.copy_(x)
            grad_parts.add_(torch.mm(wide.t(), narrow_x).view(grad_parts.shape))
        else:
            for part in range(count):
                grad_x.addmm_(grads[part], self.parts[part])
            grad_parts.baddbmm_(grads.transpose(1, 2), x.unsqueeze(0).expand(count, -1, -1))
