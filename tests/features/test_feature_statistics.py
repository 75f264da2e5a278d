"""Exact sums and counted quantiles."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features import statistics
from recsys.features.statistics import FLOAT32_MAX, Histogram, Moments, exact_sum, quantiles

FLOATS = st.floats(-FLOAT32_MAX, FLOAT32_MAX)


@given(st.lists(st.floats(-1e270, 1e270), max_size=50))
def test_exact_sum_is_the_rational_sum(values: list[float]) -> None:
    got = Fraction(exact_sum(np.array(values, dtype=np.float64)), 1 << 1074)
    assert got == sum((Fraction(v) for v in values), Fraction(0))


def test_exact_sum_of_many_blocks() -> None:
    x = np.random.default_rng(0).lognormal(0, 5, 200_000) * 1e-7
    assert float(Fraction(exact_sum(x), 1 << 1074)) == math.fsum(x)


@given(st.lists(FLOATS, min_size=1, max_size=40), st.integers(0, 40), st.randoms())
def test_moments_do_not_depend_on_order_or_chunks(values, cut, random) -> None:
    whole, parts = Moments(), Moments()
    whole.add(np.array(values))
    random.shuffle(values)
    for part in (values[:cut], values[cut:]):
        parts.add(np.array(part, dtype=np.float64))
    assert whole.mean_std() == parts.mean_std()


def test_moments_by_hand() -> None:
    moments = Moments()
    moments.add(np.array([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]))
    assert moments.mean_std() == (5.0, 2.0)
    assert Moments().mean_std() == (0.0, 1.0)


def test_moments_do_not_cancel() -> None:
    """Seconds since 1970 one apart: squares of 1e18 leave no bit for the variance in doubles."""
    moments = Moments()
    moments.add(1.7e9 + np.array([0.1, 1.1, 2.1]))
    x = [Fraction(1.7e9 + d) for d in (0.1, 1.1, 2.1)]
    mean = sum(x) / 3
    want = float(sum((v - mean) ** 2 for v in x) / 3) ** 0.5
    assert moments.mean_std() == (float(mean), pytest.approx(want, rel=1e-12))


def test_quantiles_by_hand() -> None:
    values, counts = np.array([1.0, 2.0, 5.0]), np.array([6, 1, 3])  # 1 1 1 1 1 1 2 5 5 5
    assert quantiles(values, counts, 2).tolist() == [1.0]  # position 5
    assert quantiles(values, counts, 5).tolist() == [1.0, 1.0, 2.0, 5.0]  # positions 2 4 6 8
    assert quantiles(values[:0], counts[:0], 4).tolist() == []


def test_histogram_is_exact_while_values_are_few() -> None:
    histogram = Histogram()
    histogram.add(np.array([0.1, -0.0, 3.0]))
    histogram.add(np.array([0.0, 0.1]))
    values, counts = histogram.cells()
    assert values.tolist() == [0.0, 0.1, 3.0]
    assert counts.tolist() == [2, 2, 1]


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 20), st.randoms())
def test_grid_does_not_depend_on_order_or_chunks(values, chunk, random) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "EXACT_VALUES", 8)
        patch.setattr("recsys.features.counting._PENDING", 4)
        one, other = Histogram(), Histogram()
        one.add(np.array(values))
        random.shuffle(values)
        for start in range(0, len(values), chunk):
            other.add(np.array(values[start : start + chunk]))
        cells, counts = one.cells()
        for got, want in zip(other.cells(), (cells, counts), strict=True):
            assert got.tolist() == want.tolist()
        assert counts.sum() == len(values)
        # A cell is named by its lower end, within 2**-15 of every value in it.
        place = np.searchsorted(cells, values, side="right") - 1
        assert place.min() >= 0
        error = np.array(values) - cells[place]
        assert (error <= np.abs(cells[place]) * 2.0**-15 + 1e-300).all()
