"""The entries of a table with the largest scores, by exact number."""

from __future__ import annotations

import torch
from torch import Tensor


def pick(
    scores: Tensor, count: int, among: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Mask of exactly ``count`` entries ``among`` (bool, the shape of ``scores``) that score most.

    Of equal scores the first are taken, or, with a ``generator`` (of the CPU), random ones.
    Linear time: the tables of a model are asked every few steps.

    **Example**

    >>> import torch
    >>> among = torch.tensor([True, True, False, True])
    >>> pick(torch.tensor([1.0, 3.0, 9.0, 1.0]), 2, among).tolist()
    [True, True, False, False]
    """
    places = among.flatten().nonzero().squeeze(1)
    assert 0 <= count <= len(places), f"{count} of {len(places)} entries"
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    if count > 0:
        values = scores.flatten()[places]
        lowest = values.kthvalue(len(values) - count + 1).values
        above = values > lowest
        ties = (values == lowest).nonzero().squeeze(1)
        if generator is not None:
            ties = ties[torch.randperm(len(ties), generator=generator).to(ties.device)]
        mask[places[above]] = True
        mask[places[ties[: count - int(above.sum())]]] = True
    return mask.view_as(scores)


def live(weight: Tensor, padding: int) -> Tensor:
    """Which entries of a table (R, width) can be anything but zero: all but those of its zero
    row ``padding`` (-1: it has none)."""
    mask = torch.ones_like(weight, dtype=torch.bool)
    if padding >= 0:
        mask[padding] = False
    return mask
