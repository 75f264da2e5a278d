"""From rows of full tables to rows of packed ones."""

from typing import Sequence

import torch
from torch import Tensor, nn

from recsys.embeddings.id_map import Spans

BASE_BYTES = 8
"""Of the place of a lookup's table in the remap."""


class PackedRows(Spans):
    """Row indices after the closed rows are dropped: every layer then holds kept rows only.

    ``kept[k]`` (R_k,) bool: rows of table k that stay, in their order; all others point at the row
    of zeros behind them. ``slots[f]``: table of each lookup of field f. The remap lies in the id
    map, once for all layers, in the smallest integers that hold it.

    **Shape:** ids (..., 1), f -> (..., T_f); with ``f`` = -1: (B, C) -> (B, S).
    """

    remap: Tensor
    base: Tensor

    def __init__(
        self,
        *,
        row_map: nn.Module,
        kept: Sequence[Tensor],
        slots: Sequence[Sequence[int]],
        singles: int,
    ) -> None:
        super().__init__(counts=[len(tables) for tables in slots], singles=singles)
        self.row_map = row_map
        places = [torch.where(mask, mask.cumsum(0) - 1, mask.sum()) for mask in kept]
        dtype = smallest_dtype(max(int(mask.sum()) for mask in kept))
        self.register_buffer("remap", torch.cat(places).to(dtype))
        starts = torch.tensor([0, *(len(mask) for mask in kept)]).cumsum(0)
        base = [int(starts[table]) for tables in slots for table in tables]
        self.register_buffer("base", torch.tensor(base, dtype=torch.int64), persistent=False)

    def forward(self, ids: Tensor, f: int) -> Tensor:
        start, n = self.span(f)
        rows = self.row_map(ids, f) + self.base.narrow(0, start, n)  # (..., n)
        return self.remap[rows].to(torch.int32)


def smallest_dtype(largest: int) -> torch.dtype:
    """The smallest integer type that holds 0 .. ``largest`` and that torch indexes with."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if largest <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64
