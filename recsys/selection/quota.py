"""How many weights stay, and which: a share of all, or as many as fit into a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recsys.embeddings.budget import refuse_selection, size_text
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
