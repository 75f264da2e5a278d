"""Ids as digits of a mixed radix system, and products of the rows that the digits choose;
scriptable."""

from math import gcd
from typing import List, Sequence

import torch
from torch import Tensor, nn

from recsys.embeddings.id_map import Spans


def spread_multiplier(n: int) -> int:
    """An odd number that is co-prime to ``n``, so that ``x -> a x mod n`` is a bijection of [0, n).

    About the golden section of n, which spreads neighbours as evenly as a multiplication can; but
    small enough for ``a x`` to stay below 2^63.
    """
    a = max(1, min(int(n * 0.6180339887498949), 2**63 // n - 1)) | 1
    while gcd(a, n) > 1:
        a -= 2
    return a


class RadixRows(Spans):
    """Slot s: digit ``floor((a_s id mod n_s) / divisor_s) mod radix_s``, times ``stride_s``, plus
    ``offset_s``.

    ``a_s`` (see `spread_multiplier`) makes neighbouring ids differ in every digit: ids are sorted
    by frequency, and all popular ones would share their leading digit. Integers only: a division
    of floats gives wrong quotients from 2^24 on. Ids outside [0, n_s) get the row -2^31, which no
    table has, so that a lookup raises: a digit would wrap silently.
    """

    multiplier: Tensor
    size: Tensor
    divisor: Tensor
    radix: Tensor
    stride: Tensor
    offset: Tensor

    def __init__(
        self,
        *,
        counts: Sequence[int],
        singles: int,
        multipliers: Sequence[int],
        sizes: Sequence[int],
        divisors: Sequence[int],
        radices: Sequence[int],
        strides: Sequence[int],
        offsets: Sequence[int],
    ) -> None:
        super().__init__(counts=counts, singles=singles)
        self.keep(
            multiplier=multipliers,
            size=sizes,
            divisor=divisors,
            radix=radices,
            stride=strides,
            offset=offsets,
        )

    def forward(self, ids: Tensor, f: int) -> Tensor:
        start, n = self.span(f)
        ids = self.spread(ids, f)
        size = self.size.narrow(0, start, n)
        spread = ids * self.multiplier.narrow(0, start, n) % size
        digit = torch.div(spread, self.divisor.narrow(0, start, n), rounding_mode="floor")
        digit = digit % self.radix.narrow(0, start, n)
        rows = digit * self.stride.narrow(0, start, n) + self.offset.narrow(0, start, n)
        return torch.where((ids >= 0) & (ids < size), rows, -2147483648)  # (..., n)


class ProductRows(nn.Module):
    """One table, up to ``k`` lookups per field: ``e_f = E[r_1] * ... * E[r_k]``, elementwise.

    Not linear in the rows: the vectors of a list are made before they are pooled. ``digits``: for
    each owner of rows its radices, ``bases`` their first rows, ``sizes`` its number of ids, which
    `half_square` needs.
    """

    linear: bool = False
    order: Tensor

    def __init__(
        self,
        *,
        counts: Sequence[int],
        singles: int,
        sizes: Sequence[int],
        digits: Sequence[Sequence[int]],
        bases: Sequence[Sequence[int]],
    ) -> None:
        super().__init__()
        single = list(counts[:singles])
        self.factors: int = max(single, default=1)
        self.uneven: bool = any(count < self.factors for count in single)
        self._owners = list(zip(sizes, digits, bases, strict=True))
        order: List[int] = []
        start = 0
        for count in single:  # a missing factor is the row of ones that is put behind the others
            order += [start + t if t < count else sum(single) for t in range(self.factors)]
            start += count
        kept = order if self.uneven else []
        self.register_buffer("order", torch.tensor(kept, dtype=torch.int64), persistent=False)

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        rows = vectors[0]  # (..., n, D)
        factors = self.factors
        if f >= 0:
            factors = rows.size(-2)
        elif self.uneven:
            ones = torch.ones([rows.size(0), 1, rows.size(2)], dtype=rows.dtype, device=rows.device)
            rows = torch.cat([rows, ones], 1).index_select(1, self.order)  # (B, C * k, D)
        if factors == 1:
            return rows
        grouped = rows.unflatten(-2, [-1, factors])  # (..., C, k, D)
        out = grouped.select(-2, 0)
        for t in range(1, factors):
            out = out * grouped.select(-2, t)
        return out  # (..., C, D)

    @torch.jit.unused
    def half_square(self, tables: List[Tensor]) -> Tensor:
        """Half the sum of squares of the vectors of all ids, without making them.

        The squares of all products of digits are products of sums of squares. Ids fill the grid of
        digits but for a corner: ``d_k`` full slices of the leading digit, and one slice that is
        filled in the same way, up to the digits of ``n - 1``.
        """
        total = torch.zeros((), device=self.order.device)
        if not tables:
            return total
        square = tables[0].square()  # (R, D)
        for n, radices, bases in self._owners:
            parts = [
                square.narrow(0, base, radix) for base, radix in zip(bases, radices, strict=True)
            ]
            leading = torch.ones_like(square[0])  # product of the digits fixed so far
            left = n
            for j in range(len(parts) - 1, -1, -1):
                below = 1
                full = leading
                for t in range(j):
                    below *= radices[t]
                    full = full * parts[t].sum(0)
                slices, left = left // below, left % below
                total = total + (full * parts[j][:slices].sum(0)).sum() / 2
                if left == 0:
                    break
                leading = leading * parts[j][slices]
        return total
