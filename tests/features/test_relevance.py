"""Relevance: noise of any cardinality knows nothing, and what is known is measured exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from recsys.features.relevance import (
    Array,
    binned,
    codes_of,
    entropy_of,
    pair_codes,
    redundancy,
    relevance,
)

ROWS = 16_384


def labels(seed: int = 0, rows: int = ROWS, share: float = 0.25) -> Array:
    return (np.random.default_rng(seed).random(rows) < share).astype(np.int64)


def test_noise_of_many_values_knows_nothing_and_weak_signals_remain() -> None:
    """What OutRank is for: without the correction the row's own number would be the best feature,
    and noise of 10,000 values beat one that moves the rate of clicks from .1 to .6."""
    rng, target = np.random.default_rng(1), labels()
    few = np.where(
        rng.random(ROWS) < 0.5, target * 2 + rng.integers(0, 2, ROWS), rng.integers(0, 4)
    )
    plain = {}
    for name, values in (
        ("informative", few),
        ("2,000 values", rng.integers(0, 2_000, ROWS)),
        ("10,000 values", rng.integers(0, 10_000, ROWS)),
        ("row", np.arange(ROWS)),
    ):
        plain[name] = mutual_info_score(values, target)
        corrected = relevance(codes_of(values), target)
        if name == "informative":
            assert corrected == pytest.approx(plain[name], abs=0.001)
            assert corrected > 0.05
        else:
            assert abs(corrected) < 0.01, name
    assert plain["2,000 values"] == pytest.approx(0.0663, abs=0.006)
    assert plain["10,000 values"] == pytest.approx(0.29, abs=0.01)
    assert plain["row"] == pytest.approx(0.5623, abs=0.01)
    assert abs(relevance(codes_of(np.arange(ROWS)), target)) < 1e-9
    assert relevance(codes_of(few), np.ones(ROWS, np.int64)) == 0


def test_a_perfect_feature_has_the_entropy_of_the_label_in_any_order() -> None:
    target = np.repeat([0, 1], ROWS // 2)
    for order in (
        np.arange(ROWS),
        np.random.default_rng(0).permutation(ROWS),
        np.arange(ROWS)[::-1],
    ):
        own = target[order]
        assert relevance(codes_of(own), own) == pytest.approx(math.log(2), abs=1e-3)
    alternating = np.arange(ROWS) % 2
    assert relevance(codes_of(alternating), alternating) == pytest.approx(math.log(2), abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 300))
def test_order_of_rows_and_names_of_values_do_not_count(seed: int, values: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    column, target = rng.integers(-values, values, rows), rng.integers(0, 2, rows)
    expected = relevance(codes_of(column), target)
    order = rng.permutation(rows)
    assert relevance(codes_of(column[order] * 7 - 3), target[order]) == pytest.approx(
        expected, abs=1e-9
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_correction_is_what_random_pairings_have(seed: int) -> None:
    rng = np.random.default_rng(seed)
    column, target = rng.integers(0, 12, 60), rng.integers(0, 2, 60)
    chance = [mutual_info_score(column, rng.permutation(target)) for _ in range(2_000)]
    spread = np.std(chance) / math.sqrt(len(chance))
    found = mutual_info_score(column, target) - relevance(codes_of(column), target)
    assert found == pytest.approx(np.mean(chance), abs=6 * spread)


def test_pairs_are_one_feature_of_all_their_combinations() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 2, ROWS), rng.integers(0, 2, ROWS)
    target = a ^ b
    first, second = codes_of(a * 10**12), codes_of(b - 5)
    together = pair_codes(first, second)
    assert together.size == 4
    assert relevance(first, target) < 0.001
    assert relevance(second, target) < 0.001
    assert relevance(together, target) > 0.6


def test_redundancy_is_information_about_each_other() -> None:
    rng = np.random.default_rng(3)
    a = codes_of(rng.integers(0, 5_000, ROWS))
    same = codes_of(a.codes * 3)
    other = codes_of(rng.integers(0, 5_000, ROWS))
    assert abs(redundancy(a, other, pair_codes(a, other), rng)) < 0.02
    full = redundancy(a, same, pair_codes(a, same), rng)
    shuffled = pair_codes(a, codes_of(rng.permutation(a.codes)))
    assert full == pytest.approx(entropy_of(shuffled) - entropy_of(a), abs=0.02)
    assert full > 1.0


def test_numbers_are_cut_at_quantiles() -> None:
    rng = np.random.default_rng(4)
    values = np.exp(rng.normal(size=ROWS))
    values[:100] = np.nan
    codes = binned(values, bins=8)
    counts = np.bincount(codes.codes)
    assert codes.size == 9
    assert counts[8] == 100
    assert counts[:8].min() > 0.98 * counts[:8].max()
    mostly = binned(np.r_[np.zeros(90), [1.0, 2.0, np.inf, -np.inf]])
    assert np.bincount(mostly.codes).max() == 90
    assert binned(np.full(3, np.nan)).codes.tolist() == [0, 0, 0]
    target = labels()
    noisy = target + 2 * rng.normal(size=ROWS)
    assert relevance(binned(noisy), target) > 0.01
    assert relevance(codes_of(np.argsort(np.argsort(noisy))), target) < 1e-9  # values as they are
