"""A table as a product of three small cores (tensor train)."""

from math import ceil
from typing import List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from recsys.embeddings.computed_store import ComputedStore


def split_rows(rows: int) -> Tuple[int, int, int]:
    """``n1, n2, n3`` with ``n1 n2 n3 >= rows``: the cube root, then the square root of the rest,
    then the rest, each rounded up."""
    first = round(rows ** (1 / 3))
    while first**3 < rows:
        first += 1
    while (first - 1) ** 3 >= rows and first > 1:
        first -= 1
    second = ceil((rows / first) ** 0.5)
    return first, second, ceil(rows / (first * second))


def split_width(width: int) -> Tuple[int, int, int]:
    """``d1 <= d2 <= d3`` with ``d1 d2 d3 = width`` and the smallest sum: 16 -> 2, 2, 4; 10 -> 1, 2,
    5; a prime p -> 1, 1, p; 1 -> 1, 1, 1."""
    splits = [
        (a, b, width // (a * b))
        for a in range(1, width + 1)
        for b in range(a, width + 1)
        if width % (a * b) == 0 and width // (a * b) >= b
    ]
    return min(splits, key=lambda split: (sum(split), split))


def train_words(rows: int, width: int, rank: int) -> int:
    """Floats of the three cores: ``R n1 d1 + R^2 n2 d2 + R n3 d3``."""
    (n1, n2, n3), (d1, d2, d3) = split_rows(rows), split_width(width)
    return rank * (n1 * d1 + rank * n2 * d2 + n3 * d3)


class TensorTrainStore(ComputedStore):
    """``E[x, (a, b, c)] = G1[i, a, :] G2[j, :, b, :] G3[k, :, c]``, x = (i n2 + j) n3 + k.

    Cores: ``first`` (n1, d1 R), ``second`` (n2, R d2 R), ``third`` (n3, R d3).

    The product goes from the left, since ``d1 <= d3``: a prefix (i, j) is multiplied out once for
    all rows that have it, and prefixes with one j together, so that of the large second core no
    more than its slices in use is copied. Seconds for forward and backward, 1.5 M rows of width 16,
    one thread (processor time, least of three), against a slice copied for every prefix:

        rank, rows of a call    13, 4096    46, 4096    100, 4096    100, 16384
        prefixes grouped          .005        .008        .026          .151
        a slice each              .009        .077        .352         2.061

    ``l2``: weight of the penalty, half the squared norm of the table.
    """

    def __init__(
        self, *, rows: int, width: int, rank: int, cores: Tuple[Tensor, Tensor, Tensor], l2: float
    ) -> None:
        d1, d2, d3 = split_width(width)
        super().__init__(width=width, row_floats=rank * (d1 + 2 * d1 * d2 + d3) + width)
        self.rows: int = rows
        self.rank: int = rank
        self.d1, self.d2, self.d3 = d1, d2, d3
        self.n1, self.n2, self.n3 = split_rows(rows)
        self.first = nn.Parameter(cores[0])
        self.second = nn.Parameter(cores[1])
        self.third = nn.Parameter(cores[2])
        self.l2 = l2

    @staticmethod
    def fresh(
        *, rows: int, width: int, rank: int, std: float, l2: float = 0.0
    ) -> "TensorTrainStore":
        """Cores drawn so that every entry of the table has mean 0 and variance ``std**2``.

        An entry is a sum of ``R^2`` products of one number of each core. The second and the third
        core start with variance 1 / R, the first with ``std**2``: vectors start as those of a full
        table do, and the first core moves as its rows would.
        """
        (n1, n2, n3), (d1, d2, d3) = split_rows(rows), split_width(width)
        inner = rank**-0.5
        first = torch.randn(n1, d1 * rank) * std
        second = torch.randn(n2, rank * d2 * rank) * inner
        third = torch.randn(n3, rank * d3) * inner
        return TensorTrainStore(
            rows=rows, width=width, rank=rank, cores=(first, second, third), l2=l2
        )

    def prepare(self) -> List[Tensor]:
        return [self.first, self.second, self.third]

    def compute(self, rows: Tensor, shared: List[Tensor]) -> Tensor:
        first, second, third = shared[0], shared[1], shared[2]
        last = rows % self.n3
        prefix = torch.div(rows, self.n3, rounding_mode="floor")
        if is_scripting():
            left = self._shared_left(prefix, first, second)
        elif torch.compiler.is_exporting():
            left = self._left(prefix, first, second)
        else:
            left = self._shared_left(prefix, first, second)
        left = left.view([-1, self.d1 * self.d2, self.rank])  # (U, d1 d2, R)
        right = third.index_select(0, last).view([-1, self.rank, self.d3])  # (U, R, d3)
        return torch.bmm(left, right).view([-1, self.width])

    def _left(self, prefix: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """``G1[i] G2[j]`` for each prefix (P,) -> (P, d1 d2 R)."""
        i = torch.div(prefix, self.n2, rounding_mode="floor")
        one = first.index_select(0, i).view([-1, self.d1, self.rank])
        two = second.index_select(0, prefix % self.n2)
        two = two.view([-1, self.rank, self.d2 * self.rank])
        return torch.bmm(one, two).view([-1, self.d1 * self.d2 * self.rank])

    def _shared_left(self, prefix: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The same for rising prefixes, each multiplied once, those with one j together."""
        distinct, place = torch.unique_consecutive(prefix, return_inverse=True)
        if distinct.size(0) <= self.n2:  # no more slices than there are: nothing to gain
            return self._left(distinct, first, second).index_select(0, place)
        i = torch.div(distinct, self.n2, rounding_mode="floor")
        used, group, counts = torch.unique(
            distinct % self.n2, return_inverse=True, return_counts=True
        )
        most = int(counts.max())
        order = torch.argsort(group, stable=True)
        starts = counts.cumsum(0) - counts
        within = torch.empty_like(group)
        within[order] = torch.arange(group.size(0), device=group.device) - starts[group[order]]
        slot = group * most + within  # (P,): place in a grid of (groups, most)
        grid = torch.zeros(
            [used.size(0) * most, self.d1 * self.rank], dtype=first.dtype, device=first.device
        )
        grid = grid.index_copy(0, slot, first.index_select(0, i))
        left = torch.bmm(
            grid.view([used.size(0), most * self.d1, self.rank]),
            second.index_select(0, used).view([-1, self.rank, self.d2 * self.rank]),
        )
        return left.view([used.size(0) * most, -1]).index_select(0, slot[place])

    @torch.jit.unused
    def finalise(self) -> "TensorTrainStore":
        """The serving form, in the same memory."""
        return TensorTrainStore(
            rows=self.rows,
            width=self.width,
            rank=self.rank,
            cores=(self.first.detach(), self.second.detach(), self.third.detach()),
            l2=0.0,
        )

    @torch.jit.unused
    def penalised(self) -> List[nn.Parameter]:
        return list(self.parameters()) if self.l2 > 0 else []

    @torch.jit.unused
    def penalty(self) -> Optional[Tensor]:
        """L2 of the table's rows, not of its cores: see `half_square`."""
        return self.l2 * self.half_square() if self.l2 > 0 else None

    @torch.jit.unused
    def half_square(self) -> Tensor:
        """Half the sum of squares of the table.

        Computed core by core without making a row, ``2 n2 d2 R^3`` multiplications; the sum is over
        all ``n1 n2 n3`` combinations, and scaled to the rows that exist.
        """
        rank = self.rank
        one = self.first.view(-1, rank)
        gram = one.T @ one  # (R, R)
        two = self.second.view(self.n2, rank, -1).transpose(0, 1).reshape(rank, -1)
        moved = (gram @ two).view(rank, -1, rank).transpose(0, 1).reshape(-1, rank)
        two = two.view(rank, -1, rank).transpose(0, 1).reshape(-1, rank)
        gram = two.T @ moved  # (R, R)
        three = self.third.view(self.n3, rank, self.d3).transpose(0, 1).reshape(rank, -1)
        total = (gram * (three @ three.T)).sum()
        return total / 2 * (self.rows / (self.n1 * self.n2 * self.n3))
