"""Moments and quantiles of a stream, bit for bit independent of order and chunking.

Sums are exact: every double is an integer multiple of 2**-1074, integers add in any order, and the
one rounding happens at the end. Quantiles are read from value -> count: exact values while they are
few, then all of them on a fixed grid of 16 significant bits (a relative step of 2**-15), so that
the outcome is a function of the multiset of values alone and memory is bounded by the grid.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from recsys.features.counting import IdCounter

FLOAT32_MAX = float(np.finfo(np.float32).max)

EXACT_VALUES = 1 << 16
_DROPPED_BITS = 52 - 15  # of a double's 52 stored fraction bits, 15 stay
_UNIT = 1074  # sums are kept in units of 2**-_UNIT, the smallest bit of any double
_BLOCK = 1 << 16
_GRID_BITS = 35  # _BLOCK numbers of 35 bits sum to at most 52 bits


class Moments:
    """Count, mean and standard deviation of finite numbers."""

    def __init__(self) -> None:
        self._rows = 0
        self._sum = 0
        self._squares = 0

    def add(self, x: np.ndarray) -> None:
        """Takes finite float64 (N,) of at most ``FLOAT32_MAX`` in size, so that squares fit."""
        self._rows += len(x)
        self._sum += exact_sum(x)
        # x * x as an unevaluated pair of doubles, square + rest (Dekker 1971).
        high = _upper_half(x)
        low = x - high
        square = x * x
        rest = ((high * high - square) + 2.0 * high * low) + low * low
        self._squares += exact_sum(square) + exact_sum(rest)

    def mean_std(self) -> tuple[float, float]:
        """Mean and population standard deviation; (0, 1) of nothing, std 1 of a constant."""
        if self._rows == 0:
            return 0.0, 1.0
        mean = Fraction(self._sum, self._rows << _UNIT)
        variance = Fraction(self._squares, self._rows << _UNIT) - mean * mean
        std = float(variance) ** 0.5 if variance > 0 else 0.0
        return float(mean), std if std > 0 else 1.0


class Histogram:
    """value -> count of finite numbers, exact while the distinct values are few."""

    def __init__(self) -> None:
        self._counter = IdCounter()  # of the bit patterns of doubles
        self._on_grid = False

    def add(self, x: np.ndarray) -> None:
        """Takes finite float64 (N,)."""
        bits = np.ascontiguousarray(x + 0.0).view(np.int64)  # -0.0 becomes 0.0
        self._counter.add(_grid(bits) if self._on_grid else bits)
        if not self._on_grid and self._counter.merged > EXACT_VALUES:
            self._to_grid()

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct values, ascending, and their counts. A grid cell is named by its lower end."""
        bits, counts = self._counter.pairs()
        if not self._on_grid and len(bits) > EXACT_VALUES:
            self._to_grid()
            bits, counts = self._counter.pairs()
        values = bits.view(np.float64)
        order = np.argsort(values)
        return values[order], counts[order]

    def _to_grid(self) -> None:
        bits, counts = self._counter.pairs()
        self._on_grid = True
        self._counter = IdCounter()
        self._counter.add(_grid(bits), counts)


def quantiles(values: np.ndarray, counts: np.ndarray, parts: int) -> np.ndarray:
    """The values at sorted positions ``floor(k * n / parts)``, ``k = 1 .. parts - 1``, of n values
    given as ascending distinct ``values`` and ``counts``; empty of nothing."""
    if len(values) == 0:
        return values
    cumulative = np.cumsum(counts)
    positions = np.arange(1, parts) * cumulative[-1] // parts
    return values[np.searchsorted(cumulative, positions, side="right")]


def exact_sum(x: np.ndarray) -> int:
    """The sum of finite doubles (N,), below 2**900 in size, in units of 2**-1074: no rounding.

    Rump's error-free extraction (AccSum, 2008): adding and subtracting a large number rounds all
    values to a common grid, on which a block's plain sum is exact; the remainders follow.
    """
    total = 0
    for start in range(0, len(x), _BLOCK):
        rest = x[start : start + _BLOCK]
        while (largest := max(rest.max(), -rest.min())) > 0:
            exponent = int(np.frexp(largest)[1])
            sigma = np.ldexp(1.5, exponent + 52 - _GRID_BITS)
            part = (rest + sigma) - sigma  # multiples of 2**(exponent - _GRID_BITS)
            rest = rest - part
            numerator, denominator = float(part.sum()).as_integer_ratio()
            total += numerator << (_UNIT + 1 - denominator.bit_length())
    return total


def _upper_half(x: np.ndarray) -> np.ndarray:
    scaled = x * 134217729.0  # 2**27 + 1: Veltkamp's split into 26 + 26 bits
    return scaled - (scaled - x)


def _grid(bits: np.ndarray) -> np.ndarray:
    """Bit patterns of doubles -> those of the lower ends of their grid cells."""
    cut = (bits >> _DROPPED_BITS) << _DROPPED_BITS  # towards zero, also for negative doubles
    away = np.where(cut == bits, cut, cut + (1 << _DROPPED_BITS))
    return np.where(bits < 0, away, cut)
