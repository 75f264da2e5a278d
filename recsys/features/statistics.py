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
_UNIT = 1130  # sums are kept in units of 2**-_UNIT, below the smallest bit of any double


class Moments:
    """Count, mean and standard deviation of finite numbers."""

    def __init__(self) -> None:
        self._rows = 0
        self._sum = 0
        self._squares = 0

    def add(self, x: np.ndarray) -> None:
        """Takes finite float64 (N,), at most ``FLOAT32_MAX`` in size, so that squares are finite."""
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
    """The sum of finite doubles (N,), N below 2**26, in units of 2**-1130: no rounding."""
    if len(x) == 0:
        return 0
    assert len(x) < 1 << 26, "sums of half mantissas must stay below 2**53"
    fraction, exponent = np.frexp(x)
    mantissa = (fraction * 2.0**53).astype(np.int64)
    lowest = int(exponent.min())
    place = exponent - lowest
    high = np.bincount(place, weights=mantissa >> 27)
    low = np.bincount(place, weights=mantissa & ((1 << 27) - 1))
    total = 0
    for i in np.flatnonzero((high != 0) | (low != 0)):
        total += ((int(high[i]) << 27) + int(low[i])) << (int(i) + lowest - 53 + _UNIT)
    return total


def _upper_half(x: np.ndarray) -> np.ndarray:
    scaled = x * 134217729.0  # 2**27 + 1: Veltkamp's split into 26 + 26 bits
    return scaled - (scaled - x)


def _grid(bits: np.ndarray) -> np.ndarray:
    """Bit patterns of doubles -> those of the lower ends of their grid cells."""
    cut = (bits >> _DROPPED_BITS) << _DROPPED_BITS  # towards zero, also for negative doubles
    away = np.where(cut == bits, cut, cut + (1 << _DROPPED_BITS))
    return np.where(bits < 0, away, cut)
