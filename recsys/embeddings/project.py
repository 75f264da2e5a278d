"""From rows of several widths to vectors of one width, by one projection per block of rows."""

from math import sqrt
from typing import List, Sequence, Tuple

import torch
from torch import Tensor, nn


class Projections(nn.Module):
    """``x_n -> x_n P_block(n)`` for the blocks of one table.

    **Shape:** (..., n, d), blocks (n,) -> (..., n, D).
    """

    weight: Tensor

    def __init__(
        self, *, blocks: int, width: int, dim: int, orthonormal: bool, trained: bool
    ) -> None:
        super().__init__()
        bound = sqrt(6 / (width + dim))  # Xavier, for each block on its own
        weight = torch.empty(blocks, width, dim).uniform_(-bound, bound)
        if orthonormal:
            for block in weight:
                nn.init.orthogonal_(block)
        if trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)

    def forward(self, vectors: Tensor, blocks: Tensor) -> Tensor:
        weight = self.weight.index_select(0, blocks)  # (n, d, D)
        flat = vectors.flatten(0, -3)  # (N, n, d)
        out = torch.bmm(flat.transpose(0, 1), weight).transpose(0, 1)  # (N, n, D)
        if vectors.dim() == 4:
            return out.unflatten(0, [vectors.size(0), vectors.size(1)])
        return out


class WholeWidth(nn.Module):
    """A table of the full width needs no projection."""

    def forward(self, vectors: Tensor, blocks: Tensor) -> Tensor:
        return vectors


class ProjectRows(nn.Module):
    """Projects the rows of each table and sums, for each field, over its blocks.

    ``widths``: of each table; ``sizes``: rows of each of its blocks. ``places[f]``: (table, block
    of that table) of each slot of field ``f``, by table. Linear, without bias.
    """

    linear: bool = True
    blocks: Tensor
    slots: List[List[Tuple[int, int]]]  # on the class: TorchScript cannot type an empty list

    def __init__(
        self,
        *,
        dim: int,
        widths: Sequence[int],
        sizes: Sequence[Sequence[int]],
        places: Sequence[Sequence[Tuple[int, int]]],
        singles: int,
        orthonormal: bool,
        trained: bool,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            WholeWidth()
            if width == dim
            else Projections(
                blocks=len(rows), width=width, dim=dim, orthonormal=orthonormal, trained=trained
            )
            for width, rows in zip(widths, sizes, strict=True)
        )
        self._sizes = [list(rows) for rows in sizes]
        self.singles: int = singles
        joint = [place for field in places[:singles] for place in field]
        groups = [joint, *places]
        # blocks of the slots of each group and projected table, packed into one buffer
        packed: List[int] = []
        self.starts: List[List[int]] = []
        self.indexed: List[List[int]] = []
        self.counts: List[List[int]] = []
        for group in groups:
            starts: List[int] = []
            indexed: List[int] = []
            counts: List[int] = []
            for k, width in enumerate(widths):
                here = [block for table, block in group if table == k]
                counts.append(len(here))
                starts.append(len(packed))
                packed += here if width < dim else []
                indexed.append(len(packed) - starts[-1])
            self.starts.append(starts)
            self.indexed.append(indexed)
            self.counts.append(counts)
        self.register_buffer("blocks", torch.tensor(packed, dtype=torch.int64), persistent=False)
        # where, among the joint rows of each table, the slots of each categorical field lie
        seen = [0] * len(widths)
        self.slots = []
        for field in places[:singles]:
            found: List[Tuple[int, int]] = []
            for table, _ in field:
                found.append((table, seen[table]))
                seen[table] += 1
            self.slots.append(found)

    @torch.jit.unused
    def half_square(self, tables: List[Tensor]) -> Tensor:
        """Half the sum of squares of all projected vectors, (rows of all tables, D).

        Computed as ``tr(E'E PP') / 2`` for each block, without making the vectors.
        """
        total = torch.zeros((), device=self.blocks.device)
        for table, projection, sizes in zip(tables, self.projections, self._sizes, strict=True):
            if not isinstance(projection, Projections):
                total = total + table.square().sum() / 2
                continue
            blocks = table[: sum(sizes)].split(sizes)  # a zero row may follow
            for rows, weight in zip(blocks, projection.weight, strict=True):
                total = total + ((rows.T @ rows) * (weight @ weight.T)).sum() / 2
        return total

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        wide: List[Tensor] = []
        for k, projection in enumerate(self.projections):
            if self.counts[f + 1][k] > 0:
                blocks = self.blocks.narrow(0, self.starts[f + 1][k], self.indexed[f + 1][k])
                wide.append(projection(vectors[k], blocks))  # (..., n_k, D)
            else:
                wide.append(vectors[k])
        pieces: List[Tensor] = []
        if f >= 0:
            for part in wide:
                if part.dim() > 1:
                    pieces.append(part.sum(-2, keepdim=True) if part.size(-2) > 1 else part)
            out = pieces[0]
            for piece in pieces[1:]:
                out = out + piece
            return out  # (..., 1, D)
        for slots in self.slots:
            table, place = slots[0]
            piece = wide[table].narrow(1, place, 1)
            for table, place in slots[1:]:
                piece = piece + wide[table].narrow(1, place, 1)
            pieces.append(piece)
        return torch.cat(pieces, 1)  # (B, C, D)
