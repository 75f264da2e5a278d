"""Exact top-k over a large catalogue: a coarse pass over 8-bit codes, then true scores of the few
items that the pass cannot rule out.

One query against a million vectors of 64 floats reads 256 MB, and that is all its time. The codes
are a quarter of it. With ``w = s c + e`` (scale, codes, rest) for an item and ``q = t d + f`` for
the query, ``|q.w - t s d.c| <= |q||e| + |f|(|w| + |e|)``, so every item whose coarse score lies
further below the k-th best than these bounds allow is not among the best k. What is left, some
tens of items, is scored with one fixed order of additions: equal vectors have equal scores,
whatever the batch, and ties go by id.
"""

from typing import List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from recsys.layers.top_k import best_pairs

__all__ = ["ItemIndex", "ItemSearch"]


class ItemIndex(NamedTuple):
    """Shapes, V items in G groups of 64, the last one filled up: ``vectors`` (V, D) float32,
    ``bias`` (V,) float32, minus infinity for what is never found; ``codes`` (64 G, D') int8 with D
    rounded up to a multiple of 4,
    ``scale`` (64 G,) and ``shift`` (64 G,) float32: the coarse score is codes times scale plus
    shift; ``bounds`` (3, G) float32: factors of ``|q|``, ``|f|`` and 1 in a group's bound."""

    vectors: Tensor
    bias: Tensor
    codes: Tensor
    scale: Tensor
    shift: Tensor
    bounds: Tensor


class ItemSearch(nn.Module):
    """The items of largest ``query . vector + bias``, exactly, ties by the smaller id. Scriptable.

    **Example**

    >>> exact = ItemSearch()
    >>> index = exact.index(torch.tensor([[0.0], [1.0], [3.0], [2.0]]), torch.zeros(4), 1)
    >>> exact(index, torch.tensor([[1.0]]), torch.tensor([[2]]), k=2)
    (tensor([[3, 1]]), tensor([[2., 1.]]))
    """

    def __init__(self) -> None:
        super().__init__()
        self.group: int = 64  # items that share one bound
        self.cells: int = 2**22  # coarse scores (queries x items) held at once
        self.pairs: int = 2**18  # true scores computed at once
        self.block: int = 2**14  # items coded at once, a multiple of the group

    @torch.jit.export
    def index(self, vectors: Tensor, bias: Tensor, specials: int) -> ItemIndex:
        """The index of item ``vectors`` (V, D) with ``bias`` (V,); ids below ``specials`` and
        items with a number that is none are never found. Float32 ``vectors`` are kept, not
        copied."""
        vectors, bias = vectors.to(torch.float32), bias.to(torch.float32)
        lowest = torch.full_like(bias, float("-inf"))
        bias = torch.where(bias.isfinite(), bias, lowest)
        bias[:specials] = float("-inf")
        codes: List[Tensor] = []
        scales: List[Tensor] = []
        shifts: List[Tensor] = []
        bounds: List[Tensor] = []
        # Float32 sums of D products are off by less than D / 2 ** 24 of |q||w|: four times that.
        rounding = float(vectors.size(1) + 16) / float(2**22)
        for start in range(0, bias.size(0), self.block):
            part = vectors[start : start + self.block]
            shift = bias[start : start + self.block]
            missing = (-shift.size(0)) % self.group
            part = torch.nn.functional.pad(part, [0, 0, 0, missing])
            shift = torch.nn.functional.pad(shift, [0, missing], value=float("-inf"))
            norm = torch.linalg.vector_norm(part, dim=1)  # not finite where a number is not
            fit = norm.isfinite() & shift.isfinite()
            shift = torch.where(fit, shift, torch.full_like(shift, float("-inf")))
            norm = torch.where(fit, norm, torch.zeros_like(norm))
            part = torch.where(fit.unsqueeze(1), part, torch.zeros_like(part))
            scale = part.abs().amax(1).clamp(min=1e-30) / 127
            code = (part / scale.unsqueeze(1)).round()
            rest = torch.linalg.vector_norm(part - code * scale.unsqueeze(1), dim=1)
            size = torch.where(fit, shift.abs(), torch.zeros_like(shift))
            bound = torch.stack([rest + rounding * norm, norm + rest, rounding * size])
            codes.append(self._bytes(code))
            scales.append(scale)
            shifts.append(shift)
            bounds.append(bound.view(3, -1, self.group).amax(2))
        self._check(codes)
        return ItemIndex(
            vectors,
            bias,
            torch.cat(codes),
            torch.cat(scales),
            torch.cat(shifts),
            torch.cat(bounds, 1),
        )

    def _bytes(self, codes: Tensor) -> Tensor:
        # Four columns at least: with one, torch 2.13 multiplies 8-bit matrices wrongly.
        return torch.nn.functional.pad(codes.to(torch.int8), [0, (-codes.size(1)) % 4])

    def _check(self, codes: List[Tensor]) -> None:
        """Refuses to go on where the processor's 8-bit products are not exact: the search relies
        on them, and a wrong one would show in nothing but poor recommendations."""
        if len(codes) > 0:
            items = codes[0][: 16 * self.group]
            for rows in [1, 2, 17]:
                sums = torch._int_mm(items[:rows], items.t()).to(torch.float64)
                true = torch.mm(items[:rows].to(torch.float64), items.t().to(torch.float64))
                assert bool((sums == true).all()), "8-bit products of this torch build are wrong"

    def forward(
        self, index: ItemIndex, queries: Tensor, seen: Tensor, k: int
    ) -> Tuple[Tensor, Tensor]:
        """The ``k`` items of largest ``query . vector + bias``, exactly; ties by the smaller id.

        A query with a number that is none finds nothing.

        **Shape** - ``queries`` (B, D) float; ``seen`` (B, L) int64 ids that are left out; output
        ids (B, k) int64 and scores (B, k) float32, -1 and minus infinity where there are fewer.
        """
        step = max(self.cells // max(index.scale.size(0), 1), 1)
        ids: List[Tensor] = [torch.zeros(0, k, dtype=torch.int64, device=queries.device)]
        scores: List[Tensor] = [torch.zeros(0, k, device=queries.device)]
        for start in range(0, queries.size(0), step):
            part = queries[start : start + step].to(torch.float32)
            found, value = self._search_block(index, part, seen[start : start + step], k)
            ids.append(found)
            scores.append(value)
        return torch.cat(ids), torch.cat(scores)

    def _search_block(
        self, index: ItemIndex, queries: Tensor, seen: Tensor, k: int
    ) -> Tuple[Tensor, Tensor]:
        count, groups = queries.size(0), index.bounds.size(1)
        coarse, bound = self._coarse(index, queries)  # (b, 64 G), (b, G)
        coarse = coarse.scatter(1, seen, float("-inf")).view(count, groups, self.group)
        peak = coarse.amax(2)  # (b, G)
        # k groups whose best item is at least this good hold k items that are: a bound from below.
        if groups >= 4 * k:
            lower = peak - bound
        else:
            lower = (coarse - bound.unsqueeze(2)).flatten(1)
        least = torch.full([count, 1], float("-inf"), device=queries.device)
        if lower.size(1) >= k:
            least = torch.topk(lower, k, dim=1)[0][:, k - 1 :]  # (b, 1)
        live = ((peak + bound >= least) & (peak > float("-inf"))).nonzero()  # (P, 2)
        row, group = live[:, 0], live[:, 1]
        place = row * groups + group
        items = coarse.view(-1, self.group).index_select(0, place)  # (P, 64)
        upper = items + bound.view(-1).index_select(0, place).unsqueeze(1)
        good = (upper >= least.index_select(0, row)) & (items > float("-inf"))
        pairs = good.nonzero()
        rows = row.index_select(0, pairs[:, 0])
        ids = group.index_select(0, pairs[:, 0]) * self.group + pairs[:, 1]
        return best_pairs(rows, ids, self._exact(index, queries, rows, ids), count, k)

    def _coarse(self, index: ItemIndex, queries: Tensor) -> Tuple[Tensor, Tensor]:
        """Coarse scores (b, 64 G) and the bound of their errors by group (b, G)."""
        step = queries.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127  # (b, 1)
        codes = (queries / step).round()
        rest = torch.linalg.vector_norm(queries - codes * step, dim=1, keepdim=True)
        norm = torch.linalg.vector_norm(queries, dim=1, keepdim=True)
        sums = torch._int_mm(self._bytes(codes), index.codes.t())  # (b, 64 G) int32
        coarse = sums.to(torch.float32).mul_(index.scale).mul_(step).add_(index.shift)
        bound = norm * index.bounds[0] + rest * index.bounds[1] + index.bounds[2]
        return coarse, bound

    def _exact(self, index: ItemIndex, queries: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
        """Scores (P,) of pairs, each by itself: a matrix product would round by place and batch."""
        parts: List[Tensor] = [torch.zeros(0, device=queries.device)]
        for start in range(0, ids.size(0), self.pairs):
            item = ids[start : start + self.pairs]
            query = queries.index_select(0, rows[start : start + self.pairs])  # (p, D)
            products = index.vectors.index_select(0, item) * query
            parts.append(products.sum(1) + index.bias.index_select(0, item))
        return torch.cat(parts)
