"""Attention over the fields of a row, computed in chunks that stay in the cache.

One definition, two evaluations: `InteractingLayer` writes the mathematics with plain operators;
this file gives the same numbers several times faster on a CPU (`benchmarks/attention.py`).

- Rows go through in chunks, so score matrices and projections never leave the L2 cache of a core.
- Projections lie head by head (`attention_products`), so every product is one batched product
  over all heads of a chunk.
- Softmax is evaluated as exponentiate, multiply by the values, divide by the sums of the rows.
  A softmax is the same under any shift, so none is applied unless a row's sum leaves the range
  where float32 is exact to rounding; then the rows are done again, shifted by their maxima.
- Scores are in units of ln 2, and powers are of 2: `torch.exp2` takes a quarter of the time of
  `torch.exp` on an AMD EPYC. The factor joins that of the queries.
- Keys are padded to a multiple of four fields: with 39 of them, a product by the keys takes 1.45
  times as long as with 40. Nothing reads what the padding gives.
- Training stores input, output, row sums and, with dropout, which weights were kept; the backward
  pass recomputes scores per chunk (`attention_backward`).
- Everything is TorchScript: bundles carry `attend`, and `attention_function` runs the loops over
  chunks compiled, out of Python.
"""

from typing import Optional

import torch
from torch import Tensor

from recsys.layers.attention_products import Products, by_part


def chunk_rows(fields: int, heads: int, projected: int) -> int:
    """Rows per chunk for ``fields`` fields and ``projected`` floats of projections per field.

    300 k floats of projections and scores, and the buffers beside them, fill the 2 MB of L2 of
    one core.

    **Example**

    >>> chunk_rows(39, 2, 96)
    44
    """
    return max(1, 300_000 // (fields * (heads * fields + projected)))


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
    shift = False
    for _ in range(2):
        attend_rows(
            x,
            weight,
            None,
            out,
            sums,
            heads,
            factor,
            relu_projections,
            add_input,
            final_relu,
            1.0,
            False,
            shift,
        )
        if in_range(sums):
            break
        shift = True
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
    kept: Optional[Tensor],
    out: Tensor,
    sums: Tensor,
    heads: int,
    factor: float,
    relu_projections: bool,
    add_input: bool,
    final_relu: bool,
    keep: float,
    narrow: bool,
    shift: bool,
) -> None:
    """`attend` into ``out`` (B, F, d'); the row sums of exp(scores) into ``sums`` (H, B, F).

    ``kept`` (H, B, F, F), 0 or 1: attention weights not dropped, the fraction ``keep`` of all.
    ``narrow``: products with ``weight`` in bfloat16. ``shift``: scores less their row maxima, safe
    at any size.
    """
    batch, fields, width = x.shape[0], x.shape[1], x.shape[2]
    blocks, total = weight.shape[0], weight.shape[1]
    d = total // heads
    rows = min(batch, chunk_rows(fields, heads, blocks * total))
    products = Products(by_part(weight, heads, factor), rows * fields, narrow)
    padded = padded_keys(fields)
    keys_buffer = x.new_zeros(heads * rows, padded, d)
    scores_buffer = x.new_empty(heads * rows, fields, padded)
    mixed_buffer = x.new_empty(heads * rows, fields, d)
    merged_buffer = x.new_empty(rows, fields, total)
    ones = x.new_ones(fields)
    for start in range(0, batch, max(rows, 1)):
        n = min(rows, batch - start)
        x_chunk, out_chunk = x[start : start + n], out[start : start + n]
        projected = products.project(x_chunk.reshape(n * fields, width), relu_projections)
        parts = projected.view(blocks, heads * n, fields, d)
        mixed = mixed_buffer[: heads * n]
        scores = exp_scores(parts[0], parts[1], keys_buffer, scores_buffer, shift)
        sums_chunk = sums[:, start : start + n]
        by_field = scores_buffer.view(-1, padded)[:, :fields]  # (H n F, F)
        for head in range(heads):
            by_head = by_field[head * n * fields : (head + 1) * n * fields]
            torch.mv(by_head, ones, out=sums_chunk[head].view(n * fields))
        if kept is not None:
            scores.view(heads, n, fields, fields).mul_(kept[:, start : start + n])
            scores.mul_(1 / keep)
        torch.bmm(scores, parts[2], out=mixed)
        # Head by head: torch would take the heads of one vector in turn, in steps of d.
        merged = merged_buffer[:n]
        for head in range(heads):
            a, b, first = head * d, head * d + d, head * n
            row_sums = sums_chunk[head].unsqueeze(2)  # (n, F, 1)
            torch.div(mixed[first : first + n], row_sums, out=merged[:, :, a:b])
            if blocks == 4:
                merged[:, :, a:b].add_(parts[3, first : first + n])
        # ``out`` is not in the cache: it is written once, in order.
        if add_input:
            torch.add(merged, x_chunk, out=out_chunk)
        else:
            out_chunk.copy_(merged)
        if final_relu:
            out_chunk.relu_()


def padded_keys(fields: int) -> int:
    """Keys of ``fields`` fields in a product: the next multiple of four."""
    return (fields + 3) // 4 * 4


def exp_scores(
    queries: Tensor, keys: Tensor, keys_buffer: Tensor, scores_buffer: Tensor, shift: bool
) -> Tensor:
    """``2^(Q K^T)`` of (n, F, d) each, shifted by row maxima if ``shift``: (n, F, F), a view of
    ``scores_buffer`` (N, F, P). ``keys_buffer`` (N, P, d) is zero behind the fields."""
    n, fields = queries.shape[0], queries.shape[1]
    padded, scores = keys_buffer[:n], scores_buffer[:n]
    padded[:, :fields] = keys
    torch.bmm(queries, padded.transpose(1, 2), out=scores)
    if shift:
        scores.sub_(scores[:, :, :fields].amax(dim=2, keepdim=True))
    scores.exp2_()
    return scores[:, :, :fields]
