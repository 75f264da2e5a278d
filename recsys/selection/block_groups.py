"""Which blocks of rows are nearly the same: L2-LSH proposes pairs, their entries decide."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET = 4.0
"""Width of a hash bucket in tolerances. Two blocks whose entries differ by at most the tolerance
meet in one hash with probability 1 - 0.8 / 4 = .8 or more."""
ROUNDS = 32
"""Groups that one key of one band may found; what is left waits for the next band."""
CHUNK = 1 << 22
"""Entries compared at a time."""


@dataclass(frozen=True)
class Lsh:
    """``bands`` keys of ``hashes`` hashes each: pairs that meet in one key are compared.

    At 4 hashes two blocks within the tolerance miss each other in all of 24 bands with probability
    (1 - .8^4)^24 = 3e-6.
    """

    bands: int = 24
    hashes: int = 4
    seed: int = 0

    def keys(self, blocks: Tensor, tolerance: float) -> Tensor:
        """(n, bands) int64 keys of ``blocks`` (n, m): ``floor((a . v + b) / r)`` for unit vectors
        ``a``, hashes of a band mixed into one number."""
        draw = torch.Generator().manual_seed(self.seed)
        count = self.bands * self.hashes
        lines = torch.randn(blocks.size(1), count, generator=draw) / blocks.size(1) ** 0.5
        width = BUCKET * tolerance
        shift = torch.rand(count, generator=draw)
        cells = torch.floor(blocks @ lines.to(blocks) / width + shift.to(blocks)).long()
        odd = torch.randint(1 << 62, (count,), generator=draw) * 2 + 1
        return (cells * odd.to(cells)).unflatten(1, [self.bands, -1]).sum(-1)


def group_blocks(
    blocks: Tensor, *, tolerance: float, similarity: float, lsh: Lsh | None = None
) -> Tensor:
    """For each of the blocks (n, m) the first block of its group, (n,) int64.

    A block joins a group if a share ``similarity`` of its entries are within ``tolerance`` of those
    of the group's first block; groups of groups are not made, so that this holds for every member.
    """
    target = torch.arange(len(blocks), device=blocks.device)
    leads = torch.zeros(len(blocks), dtype=torch.bool, device=blocks.device)
    keys = (lsh or Lsh()).keys(blocks, tolerance)
    for band in keys.unbind(1):
        waiting = (target == torch.arange(len(target), device=target.device)).nonzero().flatten()
        for _ in range(ROUNDS):
            if len(waiting) < 2:
                break
            waiting = waiting[band[waiting].sort(stable=True).indices]  # by key, then by place
            _, where, size = torch.unique_consecutive(
                band[waiting], return_inverse=True, return_counts=True
            )
            first = waiting[size.cumsum(0) - size][where]  # the first of each bucket
            others = waiting != first
            pairs = others & ~leads[waiting]  # the first of a group stays
            joins = torch.zeros_like(pairs)
            joins[pairs] = _same(blocks, waiting[pairs], first[pairs], tolerance, similarity)
            target[waiting[joins]] = first[joins]
            leads[first[joins]] = True
            waiting = waiting[others & ~joins]
    return target


def _same(
    blocks: Tensor, left: Tensor, right: Tensor, tolerance: float, similarity: float
) -> Tensor:
    """(N,) bool: whether enough entries of the pairs (left, right) are close."""
    step = max(1, CHUNK // max(1, blocks.size(1)))
    parts = [
        ((blocks[a] - blocks[b]).abs() <= tolerance).float().mean(1) >= similarity
        for a, b in zip(left.split(step), right.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool, device=blocks.device)
