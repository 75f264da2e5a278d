"""`attend` with a gradient, its rows split over torch's threads.

The loops over chunks are compiled by TorchScript: their 3,000 small operators a layer cost a fifth
less time than from Python, and they run free of the interpreter lock.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable

from recsys.layers.attention_backward import backward_rows
from recsys.layers.attention_kernel import How, attend_rows, chunk_rows, in_range
from recsys.layers.attention_products import worth_narrowing
from recsys.layers.dropout import draw_kept
from recsys.layers.row_threads import over_rows


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as TorchScript, compiled once."""
    with warnings.catch_warnings():
        # Deprecated upstream, still what a bundle is made of.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.*")
        script: Callable[..., Any] = torch.jit.script(function)
    return script


def kept_weights(shape: tuple[int, ...], dropout: float) -> tuple[Tensor, float]:
    """Which of ``shape`` survive ``dropout``, 1 or 0 as uint8, and the fraction expected to."""
    kept, fraction = draw_kept(shape, dropout)
    return kept.view(torch.uint8), fraction  # multiplies three times as fast as bool


class Attend(torch.autograd.Function):
    """``Attend.apply(x, weight, kept, heads, factor, relu_projections, add_input, final_relu,
    keep, narrow)``, the last seven apart since autocast takes no named tuple.

    Arguments and result are those of `attend_rows` and `How`; once differentiable in ``x`` and
    ``weight``. Keeps ``x``, ``kept``, the output and the row sums of exp(scores) for the backward
    pass. What is not ``narrow`` is float32, under autocast too.
    """

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        kept: Tensor | None,
        heads: int,
        factor: float,
        relu_projections: bool,
        add_input: bool,
        final_relu: bool,
        keep: float,
        narrow: bool,
    ) -> Tensor:
        batch, fields = x.shape[0], x.shape[1]
        narrow = narrow and worth_narrowing(x.shape[2])
        how = How(heads, factor, relu_projections, add_input, final_relu, keep, narrow, shift=False)
        inputs, w = x.detach().contiguous(), weight.detach()
        out, sums = x.new_empty(batch, fields, w.shape[1]), x.new_empty(heads, batch, fields)
        chunk = chunk_rows(fields, w.shape[0] * w.shape[1])
        run = compiled(attend_rows)

        def rows(a: int, b: int) -> None:
            kept_rows = None if kept is None else kept[:, a:b]
            run(inputs[a:b], w, kept_rows, out[a:b], sums[:, a:b], how)

        over_rows(rows, rows=batch, chunk=chunk)
        if not in_range(sums):
            how = how._replace(shift=True)
            over_rows(rows, rows=batch, chunk=chunk)
        ctx.save_for_backward(inputs, weight, kept, out, sums)
        ctx.how, ctx.chunk = how, chunk
        return out

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[override]
        ctx: Any, grad_out: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, kept, out, sums = ctx.saved_tensors
        grad_out, w, out = grad_out.contiguous(), weight.detach(), out.detach()
        grad_x = torch.empty_like(x)
        run = compiled(backward_rows)

        def rows(a: int, b: int) -> Tensor:
            kept_rows = None if kept is None else kept[:, a:b]
            rows_in = (grad_out[a:b], x[a:b], w, kept_rows, out[a:b], sums[:, a:b], grad_x[a:b])
            grad_weight: Tensor = run(*rows_in, ctx.how)
            return grad_weight

        parts = over_rows(rows, rows=len(x), chunk=ctx.chunk)
        grad_weight = torch.stack(parts).sum(0) if parts else torch.zeros_like(w)
        return (grad_x, grad_weight, *[None] * 8)
