"""How the rows of one table start where they do not all start alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Part = tuple[int, Callable[[Tensor], object]]
"""A number of rows, and what fills them in place."""


def fill_parts(weight: Tensor, parts: Sequence[Part]) -> None:
    """Fills consecutive rows of ``weight`` (R, D), part after part; rows behind the last stay."""
    start = 0
    with torch.no_grad():
        for rows, fill in parts:
            if rows:
                fill(weight[start : start + rows])
            start += rows
    assert start <= weight.size(0)
