"""Attention over the fields of a row, computed in chunks that stay in the cache.

One definition, two evaluations: `InteractingLayer` writes the mathematics with plain operators;
this file gives the same numbers several times faster on a CPU (`benchmarks/attention.py`).

- Rows go through in chunks, so score matrices never leave the L2 cache, and no buffer is large
  enough for the allocator to fetch (and page in) fresh memory for it.
- One batched product projects ``x`` by every head: nothing is copied to separate heads.
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
    batch, fields = x.shape[0], x.shape[1]
    blocks, total = weight.shape[0], weight.shape[1]
    d = total // heads
    w = per_head(weight, heads, factor)  # (blocks * heads, D, d)
    rows = min(batch, chunk_rows(fields, blocks * total))
    projected_buffer = x.new_empty(rows * fields * blocks * total)
    scores_buffer = x.new_empty(rows, fields, fields)
    sums_buffer = x.new_empty(rows * fields)
    mixed_buffer = x.new_empty(rows, fields, d)
    ones = x.new_ones(fields)
    out = x.new_empty(batch, fields, total)
    for start in range(0, batch, max(rows, 1)):
        n = min(rows, batch - start)
        x_chunk, out_chunk = x[start : start + n], out[start : start + n]
        projected = project(x_chunk, w, projected_buffer, relu_projections)
        scores, sums, mixed = scores_buffer[:n], sums_buffer[: n * fields], mixed_buffer[:n]
        for head in range(heads):
            exp_scores(projected[head], projected[heads + head], scores, sums, ones)
            torch.bmm(scores, projected[2 * heads + head], out=mixed)
            part = out_chunk[:, :, head * d : head * d + d]
            torch.div(mixed, sums.view(n, fields, 1), out=part)
            if blocks == 4:
                part.add_(projected[3 * heads + head])
        if add_input:
            out_chunk.add_(x_chunk)
        if final_relu:
            out_chunk.relu_()
    return out


def per_head(weight: Tensor, heads: int, factor: float) -> Tensor:
    """The projection of each block and head, ``factor`` on Q's: ``(blocks * heads, D, d)``."""
    if factor != 1.0:
        weight = torch.cat([weight[:1] * factor, weight[1:]])
    blocks, total, width = weight.shape[0], weight.shape[1], weight.shape[2]
    return weight.reshape(blocks * heads, total // heads, width).transpose(1, 2).contiguous()


def project(x: Tensor, w: Tensor, buffer: Tensor, relu: bool) -> Tensor:
    """``x`` (n, F, D) through every projection of `per_head`: ``(blocks * heads, n, F, d)``."""
    n, fields, width = x.shape[0], x.shape[1], x.shape[2]
    count, d = w.shape[0], w.shape[2]
    projected = buffer[: count * n * fields * d].view(count, n * fields, d)
    torch.bmm(x.reshape(1, n * fields, width).expand(count, -1, -1), w, out=projected)
    if relu:
        projected.relu_()
    return projected.view(count, n, fields, d)


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


def place(grad: Tensor, output: Tensor, grads: Tensor, at: int, relu: bool) -> None:
    """Writes ``grad`` (n, F, d) into the columns of ``grads`` from ``at`` on, back through the
    ReLU that gave ``output`` if there was one."""
    part = grads[:, :, at : at + grad.shape[2]]
    if relu:
        torch.mul(grad, output > 0, out=part)
    else:
        part.copy_(grad)


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
    w = per_head(weight, heads, factor)  # (blocks * heads, D, d)
    wt = w.transpose(1, 2).reshape(blocks * total, width)
    grad_out = grad_out.contiguous()
    x = x.contiguous()
    rows = min(batch, chunk_rows(fields, blocks * total))
    projected_buffer = x.new_empty(rows * fields * blocks * total)
    grad_projected_buffer = x.new_empty(rows * fields, blocks * total)
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
        projected = project(x[start : start + n], w, projected_buffer, relu_projections)
        grad_flat = grad_projected_buffer[: n * fields]
        grad_projected = grad_flat.view(n, fields, blocks * total)
        scores, sums, mixed = scores_buffer[:n], sums_buffer[: n * fields], mixed_buffer[:n]
        grad_scores, scaled, values = grad_scores_buffer[:n], scaled_buffer[:n], values_buffer[:n]
        sum_column = sums.view(n, fields, 1)
        for head in range(heads):
            a = head * d
            q, k, v = projected[head], projected[heads + head], projected[2 * heads + head]
            exp_scores(q, k, scores, sums, ones)
            torch.bmm(scores, v, out=mixed)
            g = scaled[:, :, :d]
            torch.div(grad_sum[:, :, a : a + d], sum_column, out=g)
            mixed.mul_(g).div_(sum_column)
            torch.sum(mixed, dim=2, out=scaled[:, :, d]).neg_()
            values[:, :, :d] = v
            # bmm into a strided slice would run matrix by matrix: go through a buffer.
            torch.bmm(scores.transpose(1, 2), g, out=mixed)
            place(mixed, v, grad_projected, 2 * total + a, relu_projections)
            torch.bmm(scaled, values.transpose(1, 2), out=grad_scores)
            grad_scores.mul_(scores)
            torch.bmm(grad_scores, k, out=mixed)
            place(mixed, q, grad_projected, a, relu_projections)
            torch.bmm(grad_scores.transpose(1, 2), q, out=mixed)
            place(mixed, k, grad_projected, total + a, relu_projections)
            if blocks == 4:
                r = projected[3 * heads + head]
                place(grad_sum[:, :, a : a + d], r, grad_projected, 3 * total + a, relu_projections)
        grad_x_chunk = grad_x[start : start + n].view(n * fields, width)
        if add_input:
            torch.addmm(grad_sum.view(n * fields, total), grad_flat, wt, out=grad_x_chunk)
        else:
            torch.mm(grad_flat, wt, out=grad_x_chunk)
        grad_w.addmm_(grad_flat.t(), x_chunk)
    grad_weight = grad_w.view(blocks, total, width)
    grad_weight[0] *= factor
    return grad_x, grad_weight
