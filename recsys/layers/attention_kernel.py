"""Attention over the fields of a row, computed in chunks that stay in the cache.

One definition, two evaluations: `InteractingLayer` writes the mathematics with plain operators;
this file gives the same numbers several times faster on a CPU (`benchmarks/attention.py`).

- Rows go through in chunks, so score matrices never leave the L2 cache, and no buffer is large
  enough for the allocator to fetch (and page in) fresh memory for it.
- Heads are strided slices of one product ``x W^T``: nothing is copied to separate them.
- Softmax is evaluated as exponentiate, multiply by the values, divide by the sums of the rows.
  A softmax is the same under any shift, so none is applied unless a row's sum leaves the range
  where float32 is exact to rounding; then the chunk is done again, shifted by its row maxima.
- Training stores nothing but input and output; the backward pass recomputes scores per chunk.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable


def chunk_rows(fields: int, projected: int) -> int:
    """Rows per chunk for ``fields`` fields and ``projected`` floats of projections per field.

    1.4 M floats of projections and of scores of one head fill the L2 caches of two cores.

    **Example**

    >>> chunk_rows(39, 96)
    265
    """
    return max(1, 1_400_000 // (fields * (fields + projected)))


def exp_scores(queries: Tensor, keys: Tensor, scores: Tensor, sums: Tensor, ones: Tensor) -> None:
    """Fills ``scores`` with ``exp(Q K^T)``, up to one factor per row, and ``sums`` with row sums.

    **Shape** queries, keys ``(n, F, d)``; scores ``(n, F, F)``; sums ``(n * F,)``; ones ``(F,)``.
    """
    torch.bmm(queries, keys.transpose(1, 2), out=scores)
    scores.exp_()
    flat = scores.view(-1, scores.shape[2])  # (n * F, F)
    torch.mv(flat, ones, out=sums)
    low, high = torch.aminmax(sums)
    if not (float(low) > 1e-20 and float(high) < 1e20):
        torch.bmm(queries, keys.transpose(1, 2), out=scores)
        scores.sub_(scores.amax(dim=2, keepdim=True)).exp_()
        torch.mv(flat, ones, out=sums)


def attend(
    x: Tensor,
    weight: Tensor,
    heads: int,
    factor: float,
    relu_projections: bool,
    add_input: bool,
    final_relu: bool,
) -> Tensor:
    """``concat_h(softmax(factor Q_h K_h^T) V_h) + R``, with a ReLU if ``final_relu``; no gradient.

    ``weight`` (3, d', D) projects to Q, K and V, or (4, d', D) also to R; with three blocks R is
    ``x`` if ``add_input`` and absent otherwise.

    **Shape** ``(B, F, D) -> (B, F, d')``.
    """
    batch, fields, width = x.shape[0], x.shape[1], x.shape[2]
    blocks, total = weight.shape[0], weight.shape[1]
    d = total // heads
    w = scaled_projection(weight, factor)  # (D, blocks * d')
    x = x.contiguous()
    rows = min(batch, chunk_rows(fields, blocks * total))
    projected_buffer = x.new_empty(rows * fields, blocks * total)
    scores_buffer = x.new_empty(rows, fields, fields)
    sums_buffer = x.new_empty(rows * fields)
    mixed_buffer = x.new_empty(rows, fields, d)
    ones = x.new_ones(fields)
    out = x.new_empty(batch, fields, total)
    for start in range(0, batch, max(rows, 1)):
        n = min(rows, batch - start)
        x_chunk, out_chunk = x[start : start + n], out[start : start + n]
        flat = projected_buffer[: n * fields]
        torch.mm(x_chunk.view(n * fields, width), w, out=flat)
        if relu_projections:
            flat.relu_()
        projected = flat.view(n, fields, blocks * total)
        scores, sums, mixed = scores_buffer[:n], sums_buffer[: n * fields], mixed_buffer[:n]
        for head in range(heads):
            a = head * d
            q = projected[:, :, a : a + d]
            k = projected[:, :, total + a : total + a + d]
            v = projected[:, :, 2 * total + a : 2 * total + a + d]
            exp_scores(q, k, scores, sums, ones)
            torch.bmm(scores, v, out=mixed)
            torch.div(mixed, sums.view(n, fields, 1), out=out_chunk[:, :, a : a + d])
        if blocks == 4:
            out_chunk.add_(projected[:, :, 3 * total :])
        elif add_input:
            out_chunk.add_(x_chunk)
        if final_relu:
            out_chunk.relu_()
    return out


def scaled_projection(weight: Tensor, factor: float) -> Tensor:
    """The blocks of ``weight`` side by side, ``factor`` on Q's: ``(D, blocks * d')``."""
    if factor != 1.0:
        weight = torch.cat([weight[:1] * factor, weight[1:]])
    return weight.flatten(0, 1).t().contiguous()


class Attend(torch.autograd.Function):
    """`attend` with a gradient: keeps ``x`` and the output, recomputes scores per chunk."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        heads: int,
        factor: float,
        relu_projections: bool,
        add_input: bool,
        final_relu: bool,
    ) -> Tensor:
        out = attend(x, weight, heads, factor, relu_projections, add_input, final_relu)
        ctx.save_for_backward(x, weight, out)
        ctx.flags = (heads, factor, relu_projections, add_input, final_relu)
        return out

    @staticmethod
    @once_differentiable
    @custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(  # type: ignore[override]
        ctx: Any, grad_out: Tensor
    ) -> Tuple[Optional[Tensor], ...]:
        x, weight, out = ctx.saved_tensors
        grads = attend_backward(grad_out, x, weight, out, *ctx.flags)
        return (*grads, None, None, None, None, None)


def attend_backward(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    heads: int,
    factor: float,
    relu_projections: bool,
    add_input: bool,
    final_relu: bool,
) -> Tuple[Tensor, Tensor]:
    """Gradients of `attend` at ``x`` and ``weight``.

    With ``E = exp(scores)``, row sums s, ``g = dO / s``: ``dV = E^T g`` and
    ``dS = E * (g V^T - <g, O>)``. The second bracket is one product ``[g, -<g, O>] [V, 1]^T``, so
    the score matrices are passed over only twice outside matrix products: exp and one multiply.
    """
    batch, fields, width = x.shape
    blocks, total, _ = weight.shape
    d = total // heads
    w = scaled_projection(weight, factor)  # (D, blocks * d')
    wt = w.t().contiguous()
    x, grad_out = x.contiguous(), grad_out.contiguous()
    rows = min(batch, chunk_rows(fields, blocks * total))
    projected_buffer = x.new_empty(rows * fields, blocks * total)
    grad_projected_buffer = torch.empty_like(projected_buffer)
    scores_buffer = x.new_empty(rows, fields, fields)
    grad_scores_buffer = torch.empty_like(scores_buffer)
    sums_buffer = x.new_empty(rows * fields)
    mixed_buffer = x.new_empty(rows, fields, d)
    scaled_buffer = x.new_empty(rows, fields, d + 1)  # [g, -<g, O>]
    values_buffer = x.new_ones(rows, fields, d + 1)  # [V, 1]
    ones = x.new_ones(fields)
    grad_sum_buffer = x.new_empty(rows, fields, total)
    threshold_backward = torch.ops.aten.threshold_backward.grad_input
    grad_x = torch.empty_like(x)
    grad_w = torch.zeros_like(wt)
    for start in range(0, batch, max(rows, 1)):
        n = min(rows, batch - start)
        x_chunk = x[start : start + n].view(n * fields, width)
        grad_sum = grad_out[start : start + n]
        if final_relu:
            positive = out[start : start + n]
            grad_sum = threshold_backward(grad_sum, positive, 0.0, grad_input=grad_sum_buffer[:n])
        flat, grad_flat = projected_buffer[: n * fields], grad_projected_buffer[: n * fields]
        torch.mm(x_chunk, w, out=flat)
        if relu_projections:
            flat.relu_()
        projected = flat.view(n, fields, blocks * total)
        grad_projected = grad_flat.view(n, fields, blocks * total)
        if blocks == 4:
            grad_projected[:, :, 3 * total :] = grad_sum
        scores, sums, mixed = scores_buffer[:n], sums_buffer[: n * fields], mixed_buffer[:n]
        grad_scores, scaled, values = grad_scores_buffer[:n], scaled_buffer[:n], values_buffer[:n]
        sum_column = sums.view(n, fields, 1)
        for head in range(heads):
            a = head * d
            q_place = slice(a, a + d)
            k_place = slice(total + a, total + a + d)
            v_place = slice(2 * total + a, 2 * total + a + d)
            q, k, v = projected[:, :, q_place], projected[:, :, k_place], projected[:, :, v_place]
            exp_scores(q, k, scores, sums, ones)
            torch.bmm(scores, v, out=mixed)
            g = scaled[:, :, :d]
            torch.div(grad_sum[:, :, q_place], sum_column, out=g)
            mixed.mul_(g).div_(sum_column)
            torch.sum(mixed, dim=2, out=scaled[:, :, d]).neg_()
            values[:, :, :d] = v
            # bmm into a strided slice would run matrix by matrix: go through a buffer.
            torch.bmm(scores.transpose(1, 2), g, out=mixed)
            grad_projected[:, :, v_place] = mixed
            torch.bmm(scaled, values.transpose(1, 2), out=grad_scores)
            grad_scores.mul_(scores)
            torch.bmm(grad_scores, k, out=mixed)
            grad_projected[:, :, q_place] = mixed
            torch.bmm(grad_scores.transpose(1, 2), q, out=mixed)
            grad_projected[:, :, k_place] = mixed
        if relu_projections:
            threshold_backward(grad_flat, flat, 0.0, grad_input=grad_flat)
        grad_x_chunk = grad_x[start : start + n].view(n * fields, width)
        if add_input:
            torch.addmm(grad_sum.view(n * fields, total), grad_flat, wt, out=grad_x_chunk)
        else:
            torch.mm(grad_flat, wt, out=grad_x_chunk)
        grad_w.addmm_(grad_flat.t(), x_chunk)
    grad_weight = grad_w.view(blocks, total, width)
    grad_weight[0] *= factor
    return grad_x, grad_weight
