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
    joint = torch.cat([score.flatten() for score in scores])
    kept = torch.zeros_like(joint, dtype=torch.bool)
    kept[joint.sort(descending=True, stable=True).indices[:count]] = True
    parts = kept.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


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
    low, high = 0, selection.parameters  # the most that is known to fit, the most that may
    while low < high:
        count = (low + high + 1) // 2
        size = _bytes(selection, largest(scores, count))
        low, high = (count, high) if size <= most else (low, count - 1)
    if low == 0:
        least = spent + _bytes(selection, largest(scores, 1))
        raise InputError(
            f"selection.budget {budget} is too small: tables with one weight left still take "
            f"{size_text(least)}; raise it"
        )
    return largest(scores, low)


def _bytes(selection: ElementSelection, kept: Sequence[Tensor]) -> int:
    """Bytes of the tables if ``kept`` of their weights stay."""
    masks = iter(kept)
    ones = [[next(masks).float() for _ in layer.tables] for layer in selection.layers]
    return plan(ones)[1]
