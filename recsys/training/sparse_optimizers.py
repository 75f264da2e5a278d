"""Optimisers of row-sparse tables: only the rows that a batch touched are read or written.

A touched row is one whose summed gradient is not all zeros; padding of lists and masked lookups
therefore touch nothing. The formulas are torch's own, per row:

- SGD, Adagrad: equal to the dense optimiser, bit for bit up to the order of the gradient's sum.
- Row-wise Adagrad: ``s_r += mean_j g_rj^2; w_r -= lr g_r / (sqrt(s_r) + eps)``, one float a row.
- Adam: the moments of untouched rows stay frozen (dense Adam lets them decay and moves the rows);
  bias correction counts global steps. ``torch.optim.SparseAdam``'s rule, with Adam's ``eps``.

One step on 1.5 M rows x 16, batch 4096 x 26 lookups, 88 k touched rows, one thread (processor
time): coalesce 4 ms, then SGD 2 ms, row-wise Adagrad 4, Adagrad 7, Adam 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_FLOATS = 65_536
"""Rows are updated in chunks of so many floats, which stay in the cache: Adam 9-12 ms, not 18."""
ADAGRAD_EPS = 1e-10
ADAM_EPS = 1e-8
ADAM_BETAS = (0.9, 0.999)

TableOptimizer = Literal["adam", "adagrad", "rowwise_adagrad", "sgd"]


class RowGradient(NamedTuple):
    """``rows`` (U,) int64 rising and unique; ``values`` (U, d), their summed gradients."""

    rows: Tensor
    values: Tensor


def coalesce(grad: Tensor) -> RowGradient:
    """Sums the duplicate rows of an uncoalesced sparse gradient; drops rows of zeros.

    The stable sort of int32 rows and the segment sum (an embedding bag over the values) take 1.6 ms
    on two threads for 106 k lookups x 16, ``torch.unique`` + ``index_add_`` 3.5 ms and
    ``Tensor.coalesce`` 7.8 ms. The order of every sum is fixed, so runs repeat exactly.
    """
    rows, values = grad._indices()[0], grad._values()
    if rows.numel() == 0:
        return RowGradient(rows, values)
    if grad.size(0) <= torch.iinfo(torch.int32).max:
        rows = rows.int()
    ordered, place = torch.sort(rows, stable=True)
    unique, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = counts.cumsum(0) - counts
    sums = F.embedding_bag(place, values.contiguous(), starts, mode="sum")  # (U, d)
    touched = sums.abs().amax(1) != 0  # a NaN is touched: it must be seen, not dropped
    if not bool(touched.all()):
        unique, sums = unique[touched], sums[touched]
    return RowGradient(unique.long(), sums)


def new_state(weight: Tensor, optimizer: TableOptimizer) -> dict[str, Tensor]:
    """Zeroed optimiser state of one table, by name."""
    if optimizer == "adam":
        return {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
    if optimizer == "adagrad":
        return {"sum": torch.zeros_like(weight)}
    if optimizer == "rowwise_adagrad":
        return {"sum": weight.new_zeros(weight.size(0), 1)}
    return {}


def update_rows(
    weight: Tensor,
    state: dict[str, Tensor],
    gradient: RowGradient,
    *,
    optimizer: TableOptimizer,
    learning_rate: float,
    step: int,
    l2: float = 0.0,
    decay: float = 0.0,
) -> None:
    """One optimiser step on the rows of ``gradient``, in place. ``step`` counts from 1.

    ``l2``: ``value * w`` joins the gradient of touched rows; ``decay``: touched rows shrink by
    ``learning_rate * decay`` first (AdamW).
    """
    for rows, grad in chunks(gradient):
        old = weight.index_select(0, rows)  # (U, d)
        move_rows(
            old,
            state,
            RowGradient(rows, grad),
            optimizer=optimizer,
            learning_rate=learning_rate,
            step=step,
            l2=l2,
            decay=decay,
        )
        weight.index_copy_(0, rows, old)


def chunks(gradient: RowGradient) -> Iterator[RowGradient]:
    """``gradient`` in parts of at most `CHUNK_FLOATS`."""
    size = max(1, CHUNK_FLOATS // max(1, gradient.values.size(1)))
    parts = zip(gradient.rows.split(size), gradient.values.split(size), strict=True)
    return (RowGradient(rows, values) for rows, values in parts)


def move_rows(
    old: Tensor,
    state: dict[str, Tensor],
    gradient: RowGradient,
    *,
    optimizer: TableOptimizer,
    learning_rate: float,
    step: int,
    l2: float = 0.0,
    decay: float = 0.0,
) -> None:
    """`update_rows` on ``old`` (U, d), in place: the rows of ``gradient`` out of a table that is no
    plain floats. ``state`` covers the whole table."""
    rows, grad = gradient
    if l2 > 0:
        grad = grad.add(old, alpha=l2)
    if decay > 0:
        old.mul_(1 - learning_rate * decay)
    if optimizer == "sgd":
        old.add_(grad, alpha=-learning_rate)
    elif optimizer == "adam":
        _adam(old, grad, state, rows, learning_rate, step)
    else:
        _adagrad(old, grad, state, rows, learning_rate)


def _adam(
    old: Tensor, grad: Tensor, state: dict[str, Tensor], rows: Tensor, lr: float, step: int
) -> None:
    first = state["exp_avg"].index_select(0, rows)
    second = state["exp_avg_sq"].index_select(0, rows)
    first.lerp_(grad, 1 - ADAM_BETAS[0])
    second.mul_(ADAM_BETAS[1]).addcmul_(grad, grad, value=1 - ADAM_BETAS[1])
    state["exp_avg"].index_copy_(0, rows, first)
    state["exp_avg_sq"].index_copy_(0, rows, second)
    denominator = second.sqrt_().div_(sqrt(1 - ADAM_BETAS[1] ** step)).add_(ADAM_EPS)
    old.addcdiv_(first, denominator, value=-lr / (1 - ADAM_BETAS[0] ** step))


def _adagrad(old: Tensor, grad: Tensor, state: dict[str, Tensor], rows: Tensor, lr: float) -> None:
    """Both kinds: the accumulator has one column (row-wise) or as many as the table."""
    squares = grad.square()
    if state["sum"].size(1) < grad.size(1):
        squares = squares.mean(1, keepdim=True)  # (U, 1)
    total = state["sum"].index_select(0, rows).add_(squares)
    state["sum"].index_copy_(0, rows, total)
    old.addcdiv_(grad, total.sqrt_().add_(ADAGRAD_EPS), value=-lr)


class RowwiseAdagrad(torch.optim.Optimizer):
    """Row-wise Adagrad for dense gradients: one accumulator per row of the last dimension."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param]["sum"] = param.new_zeros(*param.shape[:-1], 1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step over all parameters that have a gradient."""
        assert closure is None, "the loss is computed once a step"
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                total = self.state[param]["sum"]
                total.add_(param.grad.square().mean(-1, keepdim=True))
                param.addcdiv_(param.grad, total.sqrt().add_(ADAGRAD_EPS), value=-group["lr"])
