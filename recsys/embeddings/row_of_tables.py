"""From the rows of several tables of one width, one row per field, to vectors."""

from typing import List, Sequence

import torch
from torch import Tensor, nn


class RowOfTables(nn.Module):
    """Several tables of one width, one row per field: the row is the vector.

    ``places[f]``: table of field ``f``, -1 for a numeric one.
    """

    linear: bool = True
    order: Tensor

    def __init__(self, *, places: Sequence[int], singles: int) -> None:
        super().__init__()
        self.places: List[int] = list(places)
        by_table = sorted(range(singles), key=lambda f: places[f])  # as the rows come
        self.reorders: bool = by_table != list(range(singles))
        order = [by_table.index(f) for f in range(singles)] if self.reorders else []
        self.register_buffer("order", torch.tensor(order, dtype=torch.int64), persistent=False)

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        if f >= 0:
            return vectors[self.places[f]]  # (..., 1, D)
        fetched: List[Tensor] = []
        for part in vectors:
            if part.dim() > 1:
                fetched.append(part)
        rows = torch.cat(fetched, 1)  # (B, C, D), by table
        if self.reorders:
            rows = rows.index_select(1, self.order)
        return rows
