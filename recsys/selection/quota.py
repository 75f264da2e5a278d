"""How many weights stay, and which: a share of all, or as many as fit into a number of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys.embeddings.budget import parse_bytes, size_text
from recsys.selection.elements import ElementSelection
from recsys.selection.forms import plan
from recsys.types import InputError


def largest(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Masks of the ``count`` largest of all ``scores`` together, each of the shape of its scores.

    Of equal scores the first stay, so that the count is met exactly.
    """
    return [rank < count for rank in _ranks(scores)]


def share_kept(selection: ElementSelection, scores: Sequence[Tensor], keep: float) -> list[Tensor]:
    """The share ``keep`` of the parameters, by ``scores``: one for each of ``selection.stores``,
    minus infinity for zero rows."""
    return largest(scores, max(1, round(keep * selection.parameters)))


def budget_kept(selection: ElementSelection, scores: Sequence[Tensor], budget: str) -> list[Tensor]:
    """As many parameters as can be served in ``budget`` bytes, by ``scores`` as above.

    The bytes are those of all layers: tables in the smallest form, the remap of rows, numeric
    vectors and projections. Errors: `InputError` if not even one parameter fits.
    """
    spent = sum(
        layer.memory().stored_bytes
        - sum(store.memory(selection.train, 0).stored_bytes for store in layer.tables)
        for layer in selection.layers
    )
    most = parse_bytes(budget) - spent
    ranks = _ranks(scores)
    low, high = 0, selection.parameters  # the most that is known to fit, the most that may
    while low < high:
        count = (low + high + 1) // 2
        size = _bytes(selection, ranks, count)
        low, high = (count, high) if size <= most else (low, count - 1)
    if low == 0:
        least = spent + _bytes(selection, ranks, 1)
        raise InputError(
            f"selection.budget {budget} is too small: tables with one weight left still take "
            f"{size_text(least)}; raise it"
        )
    return [rank < low for rank in ranks]


def _ranks(scores: Sequence[Tensor]) -> list[Tensor]:
    """The place of each score among all, the largest first, in the shape of its scores."""
    joint = torch.cat([score.flatten() for score in scores])
    places = torch.empty(len(joint), dtype=torch.int64, device=joint.device)
    order = joint.sort(descending=True, stable=True).indices
    places[order] = torch.arange(len(joint), device=joint.device)
    parts = places.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def _bytes(selection: ElementSelection, ranks: Sequence[Tensor], count: int) -> int:
    """Bytes of the tables if the first ``count`` of their weights stay."""
    left = iter(ranks)
    ones = [[(next(left) < count).float() for _ in layer.tables] for layer in selection.layers]
    return plan(ones, selection.lookups)[1]
