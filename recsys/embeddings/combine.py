"""From looked-up rows to vectors. All of these are linear in the rows and keep no bias, so lists
are pooled before them."""

from typing import List, Sequence

import torch
from torch import Tensor, nn


class OneRow(nn.Module):
    """One table, one lookup per field: the row is the vector."""

    linear: bool = True

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        return vectors[0]  # (..., C, D); f makes no difference


class ConcatRows(nn.Module):
    """One table, ``T`` lookups per field: ``e_f = [E[r_1]; ...; E[r_T]]``, width ``T * d``.

    A field with fewer lookups than the widest repeats its chunks in turn, so that every vector has
    the same width.
    """

    linear: bool = True
    order: Tensor

    def __init__(self, *, counts: Sequence[int], singles: int) -> None:
        super().__init__()
        self.counts: List[int] = list(counts)
        self.chunks: int = max(counts)
        self.uneven: bool = any(0 < count < self.chunks for count in counts)
        order, start = [], 0
        for count in counts[:singles]:
            order += [start + t % count for t in range(self.chunks)]
            start += count
        self.register_buffer("order", torch.tensor(order, dtype=torch.int64), persistent=False)

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        rows = vectors[0]
        if self.uneven:
            if f < 0:
                rows = rows.index_select(-2, self.order)
            else:
                turn = torch.arange(self.chunks, device=rows.device) % self.counts[f]
                rows = rows.index_select(-2, turn)
        return rows.unflatten(-2, [-1, self.chunks]).flatten(-2, -1)  # (..., C, T * d), a view


class SumRows(nn.Module):
    """One table, ``T`` lookups per field: ``e_f = E[r_1] + ... + E[r_T]``, width ``d``."""

    linear: bool = True
    owner: Tensor

    def __init__(self, *, counts: Sequence[int], singles: int) -> None:
        super().__init__()
        single = list(counts[:singles])
        self.singles: int = singles
        self.chunks: int = single[0] if single and len(set(single)) == 1 else 0
        owner = [c for c, count in enumerate(single) for _ in range(count)]
        self.register_buffer("owner", torch.tensor(owner, dtype=torch.int64), persistent=False)

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        rows = vectors[0]
        if f >= 0:
            return rows.sum(-2, keepdim=True)  # (..., 1, d)
        if self.chunks > 0:
            return rows.unflatten(-2, [self.singles, self.chunks]).sum(-2)  # (B, C, d)
        out = torch.zeros(
            [rows.size(0), self.singles, rows.size(2)], dtype=rows.dtype, device=rows.device
        )
        return out.index_add(1, self.owner, rows)  # (B, C, d)
