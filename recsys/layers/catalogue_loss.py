"""What sequence models minimise: which item of the catalogue comes next."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 2_000_000
"""Of logits held at once: the L2 cache of a core."""


class _CatalogueCrossEntropy(torch.autograd.Function):
    """Computes the loss and its gradients in one pass over chunks of positions: of the (N, V)
    logits only a chunk ever exists, and it is done with before it leaves the cache."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, items: Tensor, bias: Tensor | None, target: Tensor, dtype: torch.dtype
    ) -> Tensor:
        n, count = h.size(0), items.size(0)
        hidden, weight = h.detach().to(dtype), items.detach().to(dtype)
        add = None if bias is None else bias.detach().to(dtype)
        grad_h = torch.empty_like(hidden)
        grad_items, one_grad = torch.zeros_like(items), torch.empty_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        # Chunks are powers of two, the last ones smaller: oneDNN compiles for every new shape.
        chunk = 1 << max(1, CHUNK_BYTES // (hidden.element_size() * max(1, count))).bit_length() - 1
        buffer = hidden.new_empty(chunk, count)
        ones = hidden.new_ones(1, len(buffer))
        total = torch.zeros((), dtype=torch.float64)
        start = 0
        while start < n:
            while chunk > n - start:
                chunk //= 2
            x, y = hidden[start : start + chunk], target[start : start + chunk, None]
            share = buffer[:chunk]  # logits, then their softmax, then the gradient at the logits
            if add is None:
                torch.mm(x, weight.t(), out=share)
            else:
                torch.addmm(add, x, weight.t(), out=share)
            torch._softmax(share, 1, False, out=share)
            chosen = share.gather(1, y)
            # a probability that underflows counts as the least one; its gradient stays exact
            total += chosen.float().clamp_min(1e-38).log().sum(dtype=torch.float64)
            share.scatter_(1, y, chosen - 1)
            torch.mm(share, weight, out=grad_h[start : start + chunk])
            grad_items += torch.mm(share.t(), x, out=one_grad)
            if grad_bias is not None:
                grad_bias += torch.mm(ones[:, :chunk], share)[0]
            start += chunk
        ctx.save_for_backward(grad_h, grad_items, grad_bias)
        ctx.count, ctx.dtype = max(n, 1), h.dtype
        return (-total / max(n, 1)).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_items, grad_bias = ctx.saved_tensors
        scale = grad / ctx.count
        if grad_bias is not None:
            grad_bias = grad_bias * scale
        return grad_h.to(ctx.dtype) * scale, grad_items * scale, grad_bias, None, None


def catalogue_cross_entropy(
    h: Tensor, items: Tensor, bias: Tensor | None, target: Tensor
) -> Tensor:
    """Mean over positions of ``-log softmax(h items^T + bias)[target]``; 0 for no positions.

    Under bfloat16 autocast the products and the probabilities are bfloat16, their sums float32.

    **Shape** ``h`` (N, D), ``items`` (V, D), ``bias`` (V,) or None, ``target`` (N,) -> scalar.

    **Example**

    >>> h, items, target = torch.zeros(5, 2), torch.zeros(4, 2), torch.zeros(5, dtype=torch.int64)
    >>> round(catalogue_cross_entropy(h, items, None, target).item(), 4)  # ln 4
    1.3863
    """
    if h.device.type != "cpu":
        logits = F.linear(h, items, bias).float()
        return F.cross_entropy(logits, target, reduction="sum") / max(h.size(0), 1)
    narrow = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if narrow else items.dtype
    with torch.autocast("cpu", enabled=False):
        loss: Tensor = _CatalogueCrossEntropy.apply(h, items, bias, target, dtype)
    return loss


def sampled_softmax(positive: Tensor, negative: Tensor) -> Tensor:
    """Mean cross-entropy of the positive among it and its negatives.

    With negatives drawn uniformly every candidate has the same log-probability, so the correction
    by it (Bengio and Senecal, 2008) cancels. A negative of -inf does not count.

    **Shape** ``positive`` (N,), ``negative`` (N, K) logits -> scalar.
    """
    both = torch.cat([positive.unsqueeze(1), negative], 1).float()  # (N, 1 + K)
    return (both.logsumexp(1) - both[:, 0]).sum() / max(positive.size(0), 1)


def generalised_bce(positive: Tensor, negative: Tensor, beta: float) -> Tensor:
    """gBCE: mean of ``-(beta log sigma(s+) + sum_k log(1 - sigma(s-_k))) / (K + 1)``.

    Petrov and Macdonald, gSASRec, RecSys 2023, https://arxiv.org/abs/2308.07192. They
    reach ``sigma(s+)^beta`` by a float64 transform of ``s+`` before an ordinary BCE; ``log
    sigma^beta`` is ``beta log sigma``, which needs no more than float32. ``beta`` = 1: BCE. A
    negative of -inf adds nothing.

    **Shape** ``positive`` (N,), ``negative`` (N, K) logits -> scalar.

    **Example**

    >>> round(generalised_bce(torch.zeros(1), torch.zeros(1, 3), 1.0).item(), 4)  # ln 2
    0.6931
    """
    up = beta * F.softplus(-positive.float())  # (N,)
    down = F.softplus(negative.float()).sum(1)  # (N,)
    return (up + down).sum() / (max(positive.size(0), 1) * (negative.size(1) + 1))


def gbce_beta(negatives: int, items: int, calibration: float) -> float:
    """gBCE's exponent: ``alpha (t (1 - 1 / alpha) + 1 / alpha)``, alpha = negatives / (items - 1);
    t = 0 gives 1 (plain BCE), t = 1 gives alpha.

    **Example**

    >>> gbce_beta(256, 3417, 0.0), gbce_beta(854, 3417, 1.0)
    (1.0, 0.25)
    """
    alpha = min(1.0, negatives / max(1, items - 1))
    return alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
