"""The gradient of `attention_kernel.attend_rows`, by the same chunks of rows."""

import math
from typing import Optional

import torch
from torch import Tensor

from recsys.layers.attention_kernel import chunk_rows, exp_scores, padded_keys
from recsys.layers.attention_products import Products, by_part


def backward_rows(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: Optional[Tensor],
    out: Tensor,
    sums: Tensor,
    grad_x: Tensor,
    heads: int,
    factor: float,
    relu_projections: bool,
    add_input: bool,
    final_relu: bool,
    keep: float,
    narrow: bool,
    shift: bool,
) -> Tensor:
    """Gradients of `attend_rows`: at ``x`` into ``grad_x``, at ``weight`` returned.

    With ``E = exp(scores)``, row sums s, ``g = dO / s``: ``dV = E^T g`` and
    ``dS = E * (g V^T - <g, O>)``. The second bracket is one product ``[g, -<g, O>] [V, 1]^T``, so
    the score matrices are passed over only twice outside matrix products: exp and one multiply.
    O, the mixed values, is the output less R: where the final ReLU cut it off, g is zero.

    With dropout, ``g = dO / (keep s)`` and ``K = E * kept``: ``dV = K^T g`` and
    ``dS = K * (g V^T) - E * <dO, O> / s``. Scores are in units of ln 2, so their gradients are
    ``ln 2`` times these.
    """
    batch, fields, width = x.shape[0], x.shape[1], x.shape[2]
    blocks, total = weight.shape[0], weight.shape[1]
    d = total // heads
    w = by_part(weight, heads, factor)
    rows = min(batch, chunk_rows(fields, heads, blocks * total))
    products = Products(w, rows * fields, narrow)
    grads_buffer = x.new_empty(blocks * heads * rows * fields * d)
    padded = padded_keys(fields)
    keys_buffer = x.new_zeros(heads * rows, padded, d)
    scores_buffer = x.new_empty(heads * rows, fields, padded)
    grad_scores_buffer = torch.empty_like(scores_buffer)
    kept_buffer = x.new_empty(heads * rows if kept is not None else 0, fields, fields)
    grad_sum_buffer = x.new_empty(rows, fields, total)
    weighted_buffer = x.new_empty(rows, fields, total)
    dots_buffer = x.new_empty(rows * fields * heads)
    scaled_buffer = x.new_empty(heads * rows, fields, d + 1)  # [g, -<g, O>]
    log_2 = math.log(2.0)
    values_buffer = x.new_full([heads * rows, padded, d + 1], log_2)  # ln 2 [V, 1]
    minus = x.new_full([d], -1.0)
    grad_w = torch.zeros_like(w)
    for start in range(0, batch, max(rows, 1)):
        n = min(rows, batch - start)
        x_chunk, out_chunk = x[start : start + n], out[start : start + n]
        x_flat = x_chunk.view(n * fields, width)
        grad_sum = grad_out[start : start + n]
        if final_relu:
            buffer = grad_sum_buffer[:n]
            torch.ops.aten.threshold_backward(grad_sum, out_chunk, 0.0, grad_input=buffer)
            grad_sum = buffer
        grad_heads = grad_sum.view(n, fields, heads, d).permute(2, 0, 1, 3)  # (H, n, F, d)
        projected = products.project(x_flat, relu_projections)
        parts = projected.view(blocks, heads * n, fields, d)
        weighted = weighted_buffer[:n]  # dO * O
        if blocks == 4:
            for head in range(heads):
                a, b, first = head * d, head * d + d, head * n
                residual = parts[3, first : first + n]
                torch.sub(out_chunk[:, :, a:b], residual, out=weighted[:, :, a:b])
            weighted.mul_(grad_sum)
        elif add_input:
            torch.sub(out_chunk, x_chunk, out=weighted).mul_(grad_sum)
        else:
            torch.mul(out_chunk, grad_sum, out=weighted)
        dots = dots_buffer[: n * fields * heads]
        torch.mv(weighted.view(n * fields * heads, d), minus, out=dots)
        row_sums = sums[:, start : start + n].unsqueeze(3)  # (H, n, F, 1)
        minus_dots = dots.view(n, fields, heads).permute(2, 0, 1).unsqueeze(3)
        scores = exp_scores(parts[0], parts[1], keys_buffer, scores_buffer, shift)
        grad_scores_padded = grad_scores_buffer[: heads * n]
        grad_scores = grad_scores_padded[:, :, :fields]
        scaled, values = scaled_buffer[: heads * n], values_buffer[: heads * n]
        torch.mul(parts[2], log_2, out=values[:, :fields, :d])
        g, last = scaled[:, :, :d], scaled[:, :, d:]
        torch.div(grad_heads, row_sums, out=g.view(heads, n, fields, d))
        torch.div(minus_dots, row_sums, out=last.view(heads, n, fields, 1))
        grads = grads_buffer[: blocks * heads * n * fields * d].view(blocks, heads * n, fields, d)
        if kept is None:
            torch.bmm(scores.transpose(1, 2), g, out=grads[2])
            torch.bmm(scaled, values.transpose(1, 2), out=grad_scores_padded)
            grad_scores_padded.mul_(scores_buffer[: heads * n])
        else:
            g.div_(keep)
            kept_scores = kept_buffer[: heads * n]
            torch.mul(
                scores.view(heads, n, fields, fields),
                kept[:, start : start + n],
                out=kept_scores.view(heads, n, fields, fields),
            )
            torch.bmm(kept_scores.transpose(1, 2), g, out=grads[2])
            torch.bmm(g, values[:, :, :d].transpose(1, 2), out=grad_scores_padded)
            grad_scores.mul_(kept_scores).addcmul_(scores, last, value=log_2)
        torch.bmm(grad_scores, parts[1], out=grads[0])
        torch.bmm(grad_scores.transpose(1, 2), parts[0], out=grads[1])
        if blocks == 4:
            grads[3].view(heads, n, fields, d).copy_(grad_heads)
        flat = grads.view(blocks * heads, n * fields, d)
        if relu_projections:
            flat *= projected > 0
        grad_x_chunk = grad_x[start : start + n]
        if add_input:
            grad_x_chunk.copy_(grad_sum)
        else:
            grad_x_chunk.zero_()
        products.backward(flat, x_flat, grad_x_chunk.view(n * fields, width), grad_w)
    grad_weight = grad_w.view(blocks, total, width)
    grad_weight[0] *= factor / log_2
    return grad_weight
