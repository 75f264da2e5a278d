"""Attention over the fields of a row, computed in chunks that stay in the cache.

One definition, two evaluations: `InteractingLayer` writes the mathematics with plain operators;
this file gives the same numbers several times faster on a CPU (`benchmarks/attention.py`).

- Rows go through in chunks, so that score matrices and projections stay in the L2 cache of a core.
- The projections of a chunk are one product (`attention_products`); then every head goes all the
  way in turn, so that its scores are still in the cache where they are used.
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

from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from recsys.layers.attention_products import Products, scaled_weight


class How(NamedTuple):
    """How rows attend: ``factor`` of scores, ReLU on projections, ``x`` added, ReLU at the end; the
    fraction of weights that dropout keeps; products with the weights in bfloat16 (``narrow``);
    scores less their row maxima, which is safe at any size (``shift``)."""

    heads: int
    factor: float
    relu_projections: bool
    add_input: bool
    final_relu: bool
    keep: float
    narrow: bool
    shift: bool


def chunk_rows(fields: int, projected: int) -> int:
    """Rows per chunk for ``fields`` fields and ``projected`` floats of projections per field.

    300 k floats of projections and of one head's scores: with the buffers beside them about the
    2 MB of L2 of one core, and the best size where it has 1 MB, too.

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
    shift = False
    for _ in range(2):
        how = How(heads, factor, relu_projections, add_input, final_relu, 1.0, False, shift)
        attend_rows(x, weight, None, out, sums, how)
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
    how: How,
) -> None:
    """`attend` into ``out`` (B, F, d'); the row sums of exp(scores) into ``sums`` (H, B, F).

    ``kept`` (H, B, F, F), 0 or 1: attention weights not dropped.
    """
    projected = weight.shape[0] * weight.shape[1]
    for first, last, rows in spans(x.shape[0], chunk_rows(x.shape[1], projected)):
        kept_rows = None if kept is None else kept[:, first:last]
        attend_chunks(
            x[first:last], weight, kept_rows, out[first:last], sums[:, first:last], rows, how
        )


def attend_chunks(
    x: Tensor,
    weight: Tensor,
    kept: Optional[Tensor],
    out: Tensor,
    sums: Tensor,
    rows: int,
    how: How,
) -> None:
    """`attend_rows` of whole chunks of ``rows`` rows: every buffer and view is made once."""
    fields, width, blocks, total = x.shape[1], x.shape[2], weight.shape[0], weight.shape[1]
    heads = how.heads
    d = total // heads
    products = Products(scaled_weight(weight, how.factor), rows * fields, how.narrow)
    parts = products.projected.view(rows, fields, blocks, heads, d)
    scores = Scores(parts)
    weights = scores.unpadded.flatten(0, 1)  # (n F, F)
    values = parts[:, :, 2].unbind(2)
    residuals = parts[:, :, 3 if blocks == 4 else 0].unbind(2)
    mixed = x.new_empty(rows, fields, d)
    merged = x.new_empty(rows, fields, total)
    mixed_heads = merged.split(d, dim=2)
    ones = x.new_ones(fields)
    for start in range(0, x.shape[0], rows):
        x_chunk = x[start : start + rows]
        products.project(x_chunk.reshape(rows * fields, width), how.relu_projections)
        sums_chunk = sums[:, start : start + rows].unbind(0)
        for head in range(heads):
            scores.exponentiate(head, how.shift)
            row_sums = sums_chunk[head]
            torch.mv(weights, ones, out=row_sums.view(rows * fields))
            if kept is not None:
                scores.unpadded.mul_(kept[head, start : start + rows]).mul_(1 / how.keep)
            torch.bmm(scores.unpadded, values[head], out=mixed)
            torch.div(mixed, row_sums.unsqueeze(2), out=mixed_heads[head])
            if blocks == 4:
                mixed_heads[head].add_(residuals[head])
        # ``out`` is not in the cache: it is written once, in order.
        out_chunk = out[start : start + rows]
        if how.add_input:
            torch.add(merged, x_chunk, out=out_chunk)
        else:
            out_chunk.copy_(merged)
        if how.final_relu:
            out_chunk.relu_()


def spans(batch: int, rows: int) -> List[Tuple[int, int, int]]:
    """``batch`` rows as chunks of ``rows``, and the rest as one: (first, last, rows of a chunk).

    **Example**

    >>> spans(100, 44), spans(30, 44)
    ([(0, 88, 44), (88, 100, 12)], [(0, 30, 30)])
    """
    whole, rest = batch // rows * rows, batch % rows
    found: List[Tuple[int, int, int]] = []
    if whole > 0:
        found.append((0, whole, rows))
    if rest > 0:
        found.append((whole, batch, rest))
    return found


class Scores:
    """Powers of 2 of the scores of one head at a time, of projections ``(n, F, blocks, H, d)``.

    ``unpadded`` is ``(n, F, F)``, the part of ``padded`` (n, F, P) that is not padding."""

    def __init__(self, parts: Tensor) -> None:
        rows, fields, d = parts.shape[0], parts.shape[1], parts.shape[4]
        size = (fields + 3) // 4 * 4
        self.queries = parts[:, :, 0].unbind(2)
        self.keys = parts[:, :, 1].unbind(2)
        padded_keys = parts.new_zeros(rows, size, d)
        self.keys_buffer = padded_keys[:, :fields]
        self.keys_t = padded_keys.transpose(1, 2)
        self.padded = parts.new_empty(rows, fields, size)
        self.unpadded = self.padded[:, :, :fields]

    def exponentiate(self, head: int, shift: bool) -> None:
        """``2^(Q K^T)`` of ``head`` into ``unpadded``, less the maxima of rows if ``shift``."""
        self.keys_buffer.copy_(self.keys[head])
        torch.bmm(self.queries[head], self.keys_t, out=self.padded)
        if shift:
            self.padded.sub_(self.unpadded.amax(dim=2, keepdim=True))
        self.padded.exp2_()
