"""Attention over the fields of a row, computed in chunks that stay in the cache.

One definition, two evaluations: `InteractingLayer` writes the mathematics with plain operators;
this file gives the same numbers several times faster on a CPU (`benchmarks/attention.py`).

- Rows go through in chunks, so score matrices and projections never leave the L2 cache of a core.
- One batched product projects ``x`` to all of Q, K, V; heads are read as columns of the result.
- Softmax is evaluated as exponentiate, multiply by the values, divide by the sums of the rows.
  A softmax is the same under any shift, so none is applied unless a row's sum leaves the range
  where float32 is exact to rounding; then the rows are done again, shifted by their maxima.
- Training stores input, output and row sums; the backward pass recomputes scores per chunk.
- Everything is TorchScript: bundles carry `attend`, and `attention_function` runs the loops over
  chunks compiled, out of Python.
"""

import torch
from torch import Tensor


def chunk_rows(fields: int, projected: int) -> int:
    """Rows per chunk for ``fields`` fields and ``projected`` floats of projections per field.

    300 k floats of projections and of scores of one head, and the buffers beside them, fill the
    2 MB of L2 of one core; half and twice as many are 3-8 % slower.

    **Example**

    >>> chunk_rows(39, 96)
    56
    """
    return max(1, 300_000 // (fields * (fields + projected)))


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
    out = x.new_empty(x.shape[0], x.shape[1], weight.shape[1])
    sums = x.new_empty(heads, x.shape[0], x.shape[1])
    attend_rows(x, weight, out, sums, heads, factor, relu_projections, add_input, final_relu, False)
    if not in_range(sums):
        attend_rows(
            x, weight, out, sums, heads, factor, relu_projections, add_input, final_relu, True
        )
    return out


def in_range(sums: Tensor) -> bool:
    """Whether sums of unshifted exponentials are exact to rounding."""
    if sums.numel() == 0:
        return True
    low, high = torch.aminmax(sums)
    return bool(float(low) > 1e-20 and float(high) < 1e20)


def attend_rows(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    sums: Tensor,
    heads: int,
    factor: float,
    relu_projections: bool,
    add_input: bool,
    final_relu: bool,
    shift: bool,
) -> None:
    """`attend` into ``out`` (B, F, d'); the row sums of exp(scores) into ``sums`` (H, B, F).

    ``shift``: scores less their row maxima, safe at any size.
    """
    batch, fields = x.shape[0], x.shape[1]
    blocks, total = weight.shape[0], weight.shape[1]
    d = total // heads
    w = by_column(weight, factor)
    rows = min(batch, chunk_rows(fields, blocks * total))
    projected_buffer = x.new_empty(rows * fields * blocks * total)
    scores_buffer = x.new_empty(rows, fields, fields)
    mixed_buffer = x.new_empty(rows, fields, d)
    merged_buffer = x.new_empty(rows, fields, total)
    ones = x.new_ones(fields)
    for start in range(0, batch, max(rows, 1)):
        n = min(rows, batch - start)
        x_chunk, out_chunk = x[start : start + n], out[start : start + n]
        projected = project(x_chunk, w, projected_buffer, relu_projections)
        scores, mixed, merged = scores_buffer[:n], mixed_buffer[:n], merged_buffer[:n]
        for head in range(heads):
            a, b = head * d, head * d + d
            exp_scores(projected[0, :, :, a:b], projected[1, :, :, a:b], scores, shift)
            head_sums = sums[head, start : start + n]  # (n, F)
            torch.mv(scores.view(n * fields, fields), ones, out=head_sums.view(n * fields))
            torch.bmm(scores, projected[2, :, :, a:b], out=mixed)
            torch.div(mixed, head_sums.unsqueeze(2), out=merged[:, :, a:b])
        # ``out`` is not in the cache: it is written once, in order.
        if blocks == 4:
            torch.add(merged, projected[3], out=out_chunk)
        elif add_input:
            torch.add(merged, x_chunk, out=out_chunk)
        else:
            out_chunk.copy_(merged)
        if final_relu:
            out_chunk.relu_()


def by_column(weight: Tensor, factor: float) -> Tensor:
    """The projections, ``factor`` on Q's: ``(blocks, d', D) -> (blocks, D, d')``."""
    if factor != 1.0:
        weight = torch.cat([weight[:1] * factor, weight[1:]])
    return weight.transpose(1, 2).contiguous()


def project(x: Tensor, w: Tensor, buffer: Tensor, relu: bool) -> Tensor:
    """``x`` (n, F, D) through every projection of `by_column`: ``(blocks, n, F, d')``."""
    n, fields, width = x.shape[0], x.shape[1], x.shape[2]
    blocks, total = w.shape[0], w.shape[2]
    projected = buffer[: blocks * n * fields * total].view(blocks, n * fields, total)
    torch.bmm(x.reshape(1, n * fields, width).expand(blocks, -1, -1), w, out=projected)
    if relu:
        projected.relu_()
    return projected.view(blocks, n, fields, total)


def exp_scores(queries: Tensor, keys: Tensor, scores: Tensor, shift: bool) -> None:
    """Fills ``scores`` (n, F, F) with ``exp(Q K^T)``, shifted by row maxima if ``shift``."""
    torch.bmm(queries, keys.transpose(1, 2), out=scores)
    if shift:
        scores.sub_(scores.amax(dim=2, keepdim=True))
    scores.exp_()


def backward_rows(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    sums: Tensor,
    grad_x: Tensor,
    heads: int,
    factor: float,
    relu_projections: bool,
    add_input: bool,
    final_relu: bool,
    shift: bool,
) -> Tensor:
    """Gradients of `attend_rows`: at ``x`` into ``grad_x``, at ``weight`` returned.

    With ``E = exp(scores)``, row sums s, ``g = dO / s``: ``dV = E^T g`` and
    ``dS = E * (g V^T - <g, O>)``. The second bracket is one product ``[g, -<g, O>] [V, 1]^T``, so
    the score matrices are passed over only twice outside matrix products: exp and one multiply.
    O, the mixed values, is the output less R: where the final ReLU cut it off, g is zero.
    """
    batch, fields, width = x.shape[0], x.shape[1], x.shape[2]
    blocks, total = weight.shape[0], weight.shape[1]
    d, parts = total // heads, blocks * heads
    w = by_column(weight, factor)  # (blocks, D, d')
    wt = w.transpose(1, 2).contiguous().view(parts, d, width)
    rows = min(batch, chunk_rows(fields, blocks * total))
    projected_buffer = x.new_empty(rows * fields * blocks * total)
    grads_buffer = x.new_empty(rows * fields * blocks * total)
    scores_buffer = x.new_empty(rows, fields, fields)
    grad_scores_buffer = torch.empty_like(scores_buffer)
    grad_sum_buffer = x.new_empty(rows, fields, total)
    mixed_buffer = x.new_empty(rows, fields, total)
    dots_buffer = x.new_empty(rows, fields)
    scaled_buffer = x.new_empty(rows, fields, d + 1)  # [g, -<g, O>]
    values_buffer = x.new_ones(rows, fields, d + 1)  # [V, 1]
    minus = x.new_full([d], -1.0)
    grad_w = torch.zeros_like(wt)
    for start in range(0, batch, max(rows, 1)):
        n = min(rows, batch - start)
        x_chunk, out_chunk = x[start : start + n], out[start : start + n]
        grad_sum = grad_out[start : start + n]
        if final_relu:
            buffer = grad_sum_buffer[:n]
            torch.ops.aten.threshold_backward(grad_sum, out_chunk, 0.0, grad_input=buffer)
            grad_sum = buffer
        projected = project(x_chunk, w, projected_buffer, relu_projections)
        weighted = mixed_buffer[:n]  # dO * O
        if blocks == 4:
            torch.sub(out_chunk, projected[3], out=weighted).mul_(grad_sum)
        elif add_input:
            torch.sub(out_chunk, x_chunk, out=weighted).mul_(grad_sum)
        else:
            torch.mul(out_chunk, grad_sum, out=weighted)
        # Head by head and contiguous: a product into columns would run matrix by matrix.
        grads = grads_buffer[: n * fields * blocks * total].view(blocks, heads, n, fields, d)
        scores, grad_scores, dots = scores_buffer[:n], grad_scores_buffer[:n], dots_buffer[:n]
        scaled, values = scaled_buffer[:n], values_buffer[:n]
        g = scaled[:, :, :d]
        for head in range(heads):
            a, b = head * d, head * d + d
            q, k = projected[0, :, :, a:b], projected[1, :, :, a:b]
            head_sums = sums[head, start : start + n].unsqueeze(2)  # (n, F, 1)
            exp_scores(q, k, scores, shift)
            torch.div(grad_sum[:, :, a:b], head_sums, out=g)
            torch.matmul(weighted[:, :, a:b], minus, out=dots)
            torch.div(dots.unsqueeze(2), head_sums, out=scaled[:, :, d:])
            values[:, :, :d] = projected[2, :, :, a:b]
            torch.bmm(scores.transpose(1, 2), g, out=grads[2, head])
            torch.bmm(scaled, values.transpose(1, 2), out=grad_scores)
            grad_scores.mul_(scores)
            torch.bmm(grad_scores, k, out=grads[0, head])
            torch.bmm(grad_scores.transpose(1, 2), q, out=grads[1, head])
            if blocks == 4:
                grads[3, head] = grad_sum[:, :, a:b]
            if relu_projections:
                grads[:, head] *= projected[:, :, :, a:b] > 0
        flat = grads.view(parts, n * fields, d)
        grad_x_chunk = grad_x[start : start + n].view(n * fields, width)
        if add_input:
            torch.addmm(grad_sum.view(n * fields, total), flat[0], wt[0], out=grad_x_chunk)
        else:
            torch.mm(flat[0], wt[0], out=grad_x_chunk)
        for part in range(1, parts):
            grad_x_chunk.addmm_(flat[part], wt[part])
        x_flat = x_chunk.view(1, n * fields, width)
        grad_w.baddbmm_(flat.transpose(1, 2), x_flat.expand(parts, -1, -1))
    grad_weight = grad_w.view(blocks, total, width)
    grad_weight[0] *= factor
    return grad_weight
