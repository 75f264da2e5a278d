"""One lookup per field, in one of several tables that all have the full width."""

from typing import List, Sequence

import torch
from torch import Tensor, nn


class OneRowEach(nn.Module):
    """The row is the vector; categorical fields are put back into their order.

    ``tables[f]``: the table of field ``f``, or -1 for a numeric field.
    """

    linear: bool = True
    place: Tensor
    used: List[int]  # on the class: TorchScript cannot type an empty list

    def __init__(self, *, tables: Sequence[int], singles: int) -> None:
        super().__init__()
        joint = list(tables[:singles])
        order = sorted(range(singles), key=joint.__getitem__)  # as the looked-up rows come
        place = sorted(range(singles), key=order.__getitem__)
        self.in_order: bool = place == list(range(singles))
        self.used = sorted(set(joint))
        self.table: List[int] = list(tables)
        self.register_buffer("place", torch.tensor(place, dtype=torch.int64), persistent=False)

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        if f >= 0:
            return vectors[self.table[f]]  # (..., 1, D)
        parts: List[Tensor] = []
        for k in self.used:
            parts.append(vectors[k])
        rows = parts[0] if len(parts) == 1 else torch.cat(parts, -2)  # (..., C, D), by table
        return rows if self.in_order else rows.index_select(-2, self.place)
