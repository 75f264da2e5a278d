"""Confidence intervals of AUC: against the definition, the bootstrap and their own promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.training.metrics import auc
from recsys.training.significance import auc_difference, auc_interval


def random_rows(seed: int, rows: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with both classes and scores on ``levels`` values (ties)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows).astype(np.float32)
    labels[:2] = (0, 1)
    return labels, (rng.integers(0, levels, rows) / levels).astype(np.float32)


def slow_variance(labels: np.ndarray, scores: np.ndarray) -> float:
    """DeLong's variance from its definition: the (P, N) table of pairs."""
    ahead, behind = scores[labels == 1], scores[labels == 0]
    pairs = (ahead[:, None] > behind) + 0.5 * (ahead[:, None] == behind)
    return pairs.mean(1).var(ddof=1) / len(ahead) + pairs.mean(0).var(ddof=1) / len(behind)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([3, 20, 10**6]))
def test_interval_is_delongs(seed: int, levels: int) -> None:
    labels, scores = random_rows(seed, 60, levels)
    labels[:4] = (0, 0, 1, 1)
    found = auc_interval(labels, scores)
    assert found.value == pytest.approx(auc(labels, scores), abs=1e-12)
    half = 1.959963984540054 * math.sqrt(slow_variance(labels, scores))
    assert found.low == pytest.approx(max(0.0, found.value - half), abs=1e-12)
    assert found.high == pytest.approx(min(1.0, found.value + half), abs=1e-12)


def normal_rows(rng: np.random.Generator, rows: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores N(0,1) and N(shift,1): the true AUC is Phi(shift / sqrt 2)."""
    labels = (rng.random(rows) < 0.3).astype(np.float64)
    return labels, rng.normal(size=rows) + shift * labels


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    truth = 0.5 * math.erfc(-1.0 / 2)
    hits = 0
    for _ in range(600):
        labels, scores = normal_rows(rng, 300, 1.0)
        found = auc_interval(labels, scores)
        hits += found.low <= truth <= found.high
    assert 0.925 <= hits / 600 <= 0.975  # 95 % +- 2.8 standard errors


def test_interval_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(12)
    labels, scores = normal_rows(rng, 2000, 0.8)
    found = auc_interval(labels, scores)
    draws = [auc(labels[i], scores[i]) for i in (rng.integers(0, 2000, 2000) for _ in range(400))]
    half = (found.high - found.low) / 2
    assert half == pytest.approx(1.96 * np.std(draws), rel=0.15)


def test_difference_covers_zero_and_pairs_rows() -> None:
    rng = np.random.default_rng(13)
    false_alarms = 0
    for _ in range(400):
        labels, shared = normal_rows(rng, 300, 1.0)
        a, b = shared + 0.3 * rng.normal(size=300), shared + 0.3 * rng.normal(size=300)
        found = auc_difference(labels, a, b)
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
        false_alarms += found.p_value < 0.05
    assert 0.02 <= false_alarms / 400 <= 0.08
    # Correlated scores are compared far more sharply than two separate intervals could.
    single = auc_interval(labels, a)
    assert (found.high - found.low) < 0.5 * (single.high - single.low)


def test_difference_is_b_minus_a_and_finds_a_real_one() -> None:
    rng = np.random.default_rng(14)
    labels, good = normal_rows(rng, 5000, 1.5)
    bad = good + rng.normal(size=5000)
    found = auc_difference(labels, bad, good)
    assert found.value == pytest.approx(auc(labels, good) - auc(labels, bad), abs=1e-12)
    assert found.low > 0
    assert found.p_value < 1e-6
    back = auc_difference(labels, good, bad)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )


def test_equal_rankings_differ_by_nothing() -> None:
    labels, scores = random_rows(8, 100, 1000)
    assert auc_difference(labels, scores, scores.astype(np.float64) ** 3) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("labels", [[], [1, 1], [0], [0, 0, 0]])
def test_intervals_of_one_class_are_nan(labels: list[int]) -> None:
    scores = np.linspace(0, 1, len(labels))
    assert all(math.isnan(value) for value in auc_interval(np.array(labels), scores))
    assert all(math.isnan(value) for value in auc_difference(np.array(labels), scores, scores))


def test_one_row_of_a_class_has_a_value_and_no_bounds() -> None:
    found = auc_interval(np.array([0, 0, 1]), np.array([0.1, 0.5, 0.3]))
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
