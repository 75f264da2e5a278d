"""The gradient of `attention_kernel.attend_rows`, by the same chunks of rows."""

import math
from typing import Optional

import torch
from torch import Tensor

from recsys.layers.attention_kernel import How, Scores, chunk_rows, spans
from recsys.layers.attention_products import Products, scaled_weight


def backward_rows(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: Optional[Tensor],
    out: Tensor,
    sums: Tensor,
    grad_x: Tensor,
    how: How,
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
    blocks, total, width = weight.shape[0], weight.shape[1], weight.shape[2]
    grad_weight = x.new_zeros(blocks * total, width)
    for first, last, rows in spans(x.shape[0], chunk_rows(x.shape[1], blocks * total)):
        backward_chunks(
            grad_out[first:last],
            x[first:last],
            weight,
            None if kept is None else kept[:, first:last],
            out[first:last],
            sums[:, first:last],
            grad_x[first:last],
            grad_weight,
            rows,
            how,
        )
    grad_weight[:total] *= how.factor / math.log(2.0)
    return grad_weight.view(blocks, total, width)


def backward_chunks(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    kept: Optional[Tensor],
    out: Tensor,
    sums: Tensor,
    grad_x: Tensor,
    grad_weight: Tensor,
    rows: int,
    how: How,
) -> None:
    """`backward_rows` of whole chunks of ``rows`` rows: every buffer and view is made once. Adds
    to ``grad_weight`` (blocks d', D), at the weights times the factor of the scores."""
    fields, width, blocks, total = x.shape[1], x.shape[2], weight.shape[0], weight.shape[1]
    heads = how.heads
    d = total // heads
    log_2 = math.log(2.0)
    products = Products(scaled_weight(weight, how.factor), rows * fields, how.narrow)
    parts = products.projected.view(rows, fields, blocks, heads, d)
    scores = Scores(parts)
    values, residual = parts[:, :, 2].unbind(2), parts[:, :, blocks - 1].flatten(2)
    grads = torch.empty_like(products.projected)
    grad_parts = grads.view(rows, fields, blocks, heads, d)
    grad_queries, grad_keys = grad_parts[:, :, 0].unbind(2), grad_parts[:, :, 1].unbind(2)
    grad_values, grad_residual = grad_parts[:, :, 2].unbind(2), grad_parts[:, :, blocks - 1]
    grad = x.new_empty(rows, fields, d)
    grad_scores_padded = torch.empty_like(scores.padded)
    grad_scores = grad_scores_padded[:, :, :fields]
    grad_scores_t, scores_t = grad_scores.transpose(1, 2), scores.unpadded.transpose(1, 2)
    grad_mixed = x.new_empty(rows, fields, total)
    weighted = torch.empty_like(grad_mixed)  # dO * O
    dots = x.new_empty(rows * fields * heads)  # -<dO, O>
    minus_dots = dots.view(rows, fields, heads).split(1, dim=2)
    minus = x.new_full([d], -1.0)
    scaled = x.new_empty(rows, fields, d + 1)  # [g, -<g, O>]
    g, last = scaled[:, :, :d], scaled[:, :, d:]
    values_1 = x.new_full([rows, scores.padded.shape[2], d + 1], log_2)  # ln 2 [V, 1]
    values_buffer, values_1_t = values_1[:, :fields, :d], values_1.transpose(1, 2)
    values_t = values_1[:, :, :d].transpose(1, 2)
    kept_scores = x.new_empty(rows if kept is not None else 0, fields, fields)
    for start in range(0, x.shape[0], rows):
        x_chunk, out_chunk = x[start : start + rows], out[start : start + rows]
        x_flat = x_chunk.view(rows * fields, width)
        grad_sum = grad_out[start : start + rows]
        if how.final_relu:
            torch.ops.aten.threshold_backward(grad_sum, out_chunk, 0.0, grad_input=grad_mixed)
            grad_sum = grad_mixed
        products.project(x_flat, how.relu_projections)
        if blocks == 4:
            torch.sub(out_chunk, residual, out=weighted).mul_(grad_sum)
            grad_residual.copy_(grad_sum.view(rows, fields, heads, d))
        elif how.add_input:
            torch.sub(out_chunk, x_chunk, out=weighted).mul_(grad_sum)
        else:
            torch.mul(out_chunk, grad_sum, out=weighted)
        torch.mv(weighted.view(rows * fields * heads, d), minus, out=dots)
        grad_heads = grad_sum.split(d, dim=2)
        sums_chunk = sums[:, start : start + rows].unsqueeze(3).unbind(0)
        for head in range(heads):
            scores.exponentiate(head, how.shift)
            row_sums = sums_chunk[head]  # (n, F, 1)
            torch.div(grad_heads[head], row_sums, out=g)
            torch.div(minus_dots[head], row_sums, out=last)
            torch.mul(values[head], log_2, out=values_buffer)
            if kept is None:
                torch.bmm(scores_t, g, out=grad)
                torch.bmm(scaled, values_1_t, out=grad_scores_padded)
                grad_scores_padded.mul_(scores.padded)
            else:
                g.div_(how.keep)
                kept_chunk = kept[head, start : start + rows]
                torch.mul(scores.unpadded, kept_chunk, out=kept_scores)
                torch.bmm(kept_scores.transpose(1, 2), g, out=grad)
                torch.bmm(g, values_t, out=grad_scores_padded)
                grad_scores.mul_(kept_scores).addcmul_(scores.unpadded, last, value=log_2)
            grad_values[head].copy_(grad)
            torch.bmm(grad_scores, scores.keys[head], out=grad)
            grad_queries[head].copy_(grad)
            torch.bmm(grad_scores_t, scores.queries[head], out=grad)
            grad_keys[head].copy_(grad)
        if how.relu_projections:
            grads.mul_(products.projected > 0)
        grad_x_chunk = grad_x[start : start + rows]
        if how.add_input:
            grad_x_chunk.copy_(grad_sum)
        else:
            grad_x_chunk.zero_()
        products.backward(grads, x_flat, grad_x_chunk.view(rows * fields, width), grad_weight)
