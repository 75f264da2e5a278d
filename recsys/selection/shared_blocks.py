"""Tables whose blocks of rows may share storage, and the row map of the packed ones."""

from typing import Sequence

import torch
from torch import Tensor, nn

from recsys.embeddings.id_map import Spans
from recsys.embeddings.store import FloatStore, TorchStore
from recsys.selection.packing import smallest_dtype
from recsys.selection.wrapped import WrappedStore


class BlockPlaces(nn.Module):
    """Row r lies in block ``r // size``, whose rows are found at block ``place``.

    **Shape:** rows (...) -> (...).
    """

    place: Tensor

    def __init__(self, *, rows: int, size: int) -> None:
        super().__init__()
        self.size: int = size
        self.register_buffer("place", torch.arange(-(-rows // size)))

    def forward(self, rows: Tensor) -> Tensor:
        block = torch.div(rows, self.size, rounding_mode="floor")
        return self.place[block] * self.size + rows % self.size

    @torch.jit.unused
    def kept(self) -> Tensor:
        """(blocks,) bool: blocks that hold rows."""
        here: Tensor = self.place == torch.arange(len(self.place), device=self.place.device)
        return here


class SharingStore(WrappedStore):
    """``store`` seen through `BlockPlaces`: blocks that share another's hold zeros."""

    def __init__(self, *, store: FloatStore, places: BlockPlaces) -> None:
        super().__init__(store=store)
        self.places = places

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.store(self.places(rows))
        return found  # (..., width)

    @torch.jit.unused
    def rows_of(self, rows: Tensor) -> Tensor:
        """Rows of the table that the rows (...) are found at."""
        found: Tensor = self.places(rows)
        return found

    @torch.jit.unused
    def finalise(self) -> TorchStore:
        """The serving form with all rows, shared ones repeated."""
        rows = torch.arange(len(self.weight), device=self.weight.device)
        weight = self.weight.detach()[self.places(rows)]
        return TorchStore(weight=weight, sparse=False, zero_row=self.padding >= 0)

    @torch.jit.unused
    def packed(self) -> TorchStore:
        """The kept blocks alone, in their order."""
        kept = self.places.kept().repeat_interleave(self.places.size)[: len(self.weight)]
        weight = self.weight.detach()[kept]
        return TorchStore(weight=weight, sparse=False, zero_row=self.padding >= 0)


class SharedBlockRows(Spans):
    """Row indices of packed tables: one small integer per block.

    ``places[k]``: of table k. ``slots[f]``: table of each lookup of field f. **Shape:** ids
    (..., 1), f -> (..., T_f); with ``f`` = -1: (B, C) -> (B, S).
    """

    remap: Tensor
    base: Tensor

    def __init__(
        self,
        *,
        row_map: nn.Module,
        places: Sequence[BlockPlaces],
        slots: Sequence[Sequence[int]],
        singles: int,
    ) -> None:
        super().__init__(counts=[len(tables) for tables in slots], singles=singles)
        self.row_map = row_map
        self.size: int = places[0].size
        found = [(p.kept().cumsum(0) - 1)[p.place] for p in places]
        dtype = smallest_dtype(max(int(blocks.max()) for blocks in found))
        self.register_buffer("remap", torch.cat(found).to(dtype))
        starts = torch.tensor([0, *(len(p.place) for p in places)]).cumsum(0)
        base = [int(starts[table]) for tables in slots for table in tables]
        self.register_buffer("base", torch.tensor(base, dtype=torch.int64), persistent=False)

    def forward(self, ids: Tensor, f: int) -> Tensor:
        start, n = self.span(f)
        rows = self.row_map(ids, f).to(torch.int64)  # (..., n)
        block = torch.div(rows, self.size, rounding_mode="floor") + self.base.narrow(0, start, n)
        return self.remap[block].to(torch.int64) * self.size + rows % self.size
