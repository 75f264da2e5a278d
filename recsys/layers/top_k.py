"""The k best of scored pairs, by one rule for ties: the larger score, then the smaller id."""

from typing import Tuple

import torch
from torch import Tensor

__all__ = ["NO_ITEM", "best_pairs"]

NO_ITEM = -1
"""Id of a place that no candidate fills; its score is minus infinity."""


def best_pairs(
    rows: Tensor, ids: Tensor, scores: Tensor, count: int, k: int
) -> Tuple[Tensor, Tensor]:
    """The ``k`` best ids of each of ``count`` rows among P scored pairs.

    ``torch.topk`` alone leaves the order of equal scores open, so that two builds of torch may
    name different items. A score that is not a number never wins a place. Scriptable.

    **Shape** - ``rows``, ``ids`` (P,) int64, sorted by row and then id; ``scores`` (P,) float32;
    output ids (count, k) int64 and scores (count, k) float32, the best first; `NO_ITEM` and minus
    infinity where a row has fewer than ``k`` pairs.

    **Example**

    >>> rows, ids = torch.tensor([0, 0, 0]), torch.tensor([4, 7, 9])
    >>> best_pairs(rows, ids, torch.tensor([1.0, 2.0, 2.0]), count=1, k=2)[0]
    tensor([[7, 9]])
    """
    sizes = torch.bincount(rows, minlength=count)  # (count,)
    longest = int(sizes.max()) if count > 0 else 0
    width = max(longest, k)
    first = sizes.cumsum(0) - sizes
    place = torch.arange(rows.size(0), device=rows.device) - first.index_select(0, rows)
    at = rows * width + place  # (P,)
    lowest = float("-inf")
    known = torch.where(scores.isnan(), torch.full_like(scores, lowest), scores)
    all_scores = torch.full([count * width], lowest, dtype=scores.dtype, device=scores.device)
    all_ids = torch.full([count * width], -1, dtype=torch.int64, device=ids.device)
    all_scores = all_scores.scatter(0, at, known).view(count, width)
    all_ids = all_ids.scatter(0, at, ids).view(count, width)
    best, order = torch.sort(all_scores, dim=1, descending=True, stable=True)
    best, order = best[:, :k], order[:, :k]
    chosen = all_ids.gather(1, order)  # (count, k)
    return torch.where(best == lowest, torch.full_like(chosen, -1), chosen), best
