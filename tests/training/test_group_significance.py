"""GAUC differences over users: against the definition and their own promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recsys.training.group_significance import gauc_difference
from recsys.training.metrics import auc, gauc, group_aucs


def rows(
    rng: np.random.Generator, users: int, shift: float, count: int = 12
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, groups, pure noise, and scores whose strength differs from user to user."""
    groups = np.repeat(np.arange(users), count)
    labels = (rng.random(users * count) < 0.4).astype(np.float32)
    strength = rng.normal(shift, 1.0, users)[groups]
    noise = rng.normal(size=(2, len(labels)))
    return labels, groups, noise[0], noise[1] + strength * labels


def test_value_is_the_difference_of_mean_gaucs() -> None:
    rng = np.random.default_rng(1)
    labels, groups, a, b = rows(rng, 30, 0.5)
    other = rng.normal(size=len(labels))
    found = gauc_difference(labels, [a, other], [b], groups, samples=200)
    mean = (gauc(labels, a, groups) + gauc(labels, other, groups)) / 2
    assert found.value == pytest.approx(gauc(labels, b, groups) - mean, abs=1e-12)
    assert found.low < found.value < found.high
    swapped = gauc_difference(labels, [b], [a, other], groups, samples=200)
    assert swapped.low == pytest.approx(-found.high)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    big = rows(rng, 20_000, 0.3)
    truth = gauc(big[0], big[3], big[1]) - 0.5
    hits = 0
    for _ in range(150):
        labels, groups, a, b = rows(rng, 60, 0.3)
        found = gauc_difference(labels, [a], [b], groups, level=0.8, samples=300)
        hits += found.low <= truth <= found.high
    assert 0.7 <= hits / 150 <= 0.9


def test_equal_rankings_differ_by_nothing() -> None:
    labels, groups, a, _ = rows(np.random.default_rng(3), 10, 0.0)
    found = gauc_difference(labels, [a], [2 * a + groups], groups, samples=50)
    assert found == (0.0, 0.0, 0.0, 1.0)


def test_undefined_without_a_user_of_both_classes() -> None:
    found = gauc_difference(np.ones(4), [np.arange(4.0)], [np.arange(4.0)], np.array([1, 1, 2, 2]))
    assert all(math.isnan(part) for part in found)


def test_gauc_of_constants_of_one_user_and_of_offsets() -> None:
    labels, groups, a, b = rows(np.random.default_rng(4), 10, 1.0)
    assert gauc(labels, groups.astype(float), groups) == 0.5
    assert gauc(labels, b + 7.0 * groups, groups) == pytest.approx(gauc(labels, b, groups))
    one = np.zeros(len(labels))
    assert gauc(labels, a, one) == pytest.approx(auc(labels, a), abs=1e-12)
    impressions, aucs = group_aucs(labels, b, groups)
    users = [u for u in range(10) if 0 < labels[groups == u].sum() < 12]
    assert aucs == pytest.approx([auc(labels[groups == u], b[groups == u]) for u in users])
    assert impressions.tolist() == [12.0] * len(users)
