"""Metrics: against scikit-learn, by hand, in a stream, and their intervals."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from recsys.training.metrics import (
    AucAccumulator,
    auc,
    calibration,
    ece,
    evaluate,
    gauc,
    logloss,
    normalised_entropy,
    pr_auc,
    slices,
)
from recsys.types import InputError
from serving.ids import NULL_ID


def random_rows(seed: int, rows: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels with both classes, scores on ``levels`` values (ties), weights."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows).astype(np.float32)
    labels[:2] = (0, 1)
    scores = (rng.integers(0, levels, rows) / levels).astype(np.float32)
    return labels, scores, rng.exponential(size=rows).astype(np.float32)


# -- exact values ------------------------------------------------------------------------------


def test_auc_by_hand() -> None:
    # Pairs (positive, negative): .8>.4, .8>.1, .4=.4 (half), .4>.1 -> 3.5 of 4.
    assert auc(np.array([1, 0, 1, 0]), np.array([0.8, 0.4, 0.4, 0.1])) == 3.5 / 4


def test_logloss_ne_calibration_by_hand() -> None:
    labels, scores = np.array([1, 0, 0, 0]), np.array([0.5, 0.5, 0.25, 0.25])
    loss = (2 * math.log(2) - 2 * math.log(0.75)) / 4
    assert logloss(labels, scores) == pytest.approx(loss, abs=1e-15)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert normalised_entropy(labels, scores) == pytest.approx(loss / entropy, abs=1e-15)
    assert calibration(labels, scores) == pytest.approx(1.5, abs=1e-15)


def test_normalised_entropy_of_the_base_rate_is_one() -> None:
    labels = np.array([1, 0, 0, 0, 1])
    assert normalised_entropy(labels, np.full(5, 0.4)) == pytest.approx(1.0, abs=1e-12)


def test_ece_by_hand() -> None:
    # Two bins of two rows: |.2 - 0| and |.7 - .5|, each half of the mass.
    labels, scores = np.array([0, 0, 1, 0]), np.array([0.1, 0.3, 0.6, 0.8])
    assert ece(labels, scores, bins=2) == pytest.approx(0.5 * 0.2 + 0.5 * 0.2, abs=1e-15)


def test_ece_keeps_equal_scores_together() -> None:
    labels = np.array([0, 1] * 50)
    assert ece(labels, np.full(100, 0.5)) == pytest.approx(0.0, abs=1e-15)


def test_saturated_scores_cost_the_clip() -> None:
    assert logloss(np.array([1.0]), np.array([0.0])) == pytest.approx(-math.log(1e-7))
    assert logloss(np.array([0.0]), np.array([1.0])) == pytest.approx(-math.log(1e-7), rel=1e-8)


def test_gauc_by_hand() -> None:
    # User 1 (3 rows): pairs .9>.2, .9>.95? no -> 1/2. User 2 (2 rows): 1. User 3: one class, out.
    groups = np.array([1, 1, 1, 2, 2, 3, 3])
    labels = np.array([1, 0, 0, 0, 1, 1, 1])
    scores = np.array([0.9, 0.2, 0.95, 0.1, 0.3, 0.5, 0.6])
    assert gauc(labels, scores, groups) == pytest.approx((3 * 0.5 + 2 * 1.0) / 5, abs=1e-15)
    order = np.array([6, 2, 4, 0, 5, 1, 3])
    names = np.array(["a", "a", "a", "b", "b", "c", "c"], dtype=object)
    assert gauc(labels[order], scores[order], names[order]) == gauc(labels, scores, groups)


# -- against scikit-learn ----------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(2, 400),
    levels=st.sampled_from([1, 3, 50, 10**6]),
)
def test_equals_scikit_learn(seed: int, rows: int, levels: int) -> None:
    labels, scores, weights = random_rows(seed, rows, levels)
    for weight in (None, weights):
        expected = sk.roc_auc_score(labels, scores, sample_weight=weight)
        assert auc(labels, scores, weight) == pytest.approx(expected, abs=1e-9)
        expected = sk.average_precision_score(labels, scores, sample_weight=weight)
        assert pr_auc(labels, scores, weight) == pytest.approx(expected, abs=1e-9)
        clipped = np.clip(scores.astype(np.float64), 1e-7, 1 - 1e-7)
        expected = sk.log_loss(labels, clipped, sample_weight=weight)
        assert logloss(labels, scores, weight) == pytest.approx(expected, abs=1e-9)


def test_equals_scikit_learn_on_many_rows() -> None:
    labels, scores, weights = random_rows(0, 200_000, 10**9)
    assert auc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    expected = sk.roc_auc_score(labels, scores, sample_weight=weights)
    assert auc(labels, scores, weights) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 200), users=st.integers(1, 30))
def test_gauc_equals_a_loop_over_users(seed: int, rows: int, users: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(0, 2, rows), rng.integers(0, 8, rows) / 8
    groups, weights = rng.integers(-users, users, rows), rng.exponential(size=rows)
    for weight in (None, weights):
        each = np.ones(rows) if weight is None else weight
        top = bottom = 0.0
        for user in np.unique(groups):
            own = groups == user
            if len(set(labels[own])) == 2:
                value = sk.roc_auc_score(labels[own], scores[own], sample_weight=each[own])
                top, bottom = top + each[own].sum() * value, bottom + each[own].sum()
        found = gauc(labels, scores, groups, weight)
        assert math.isnan(found) if bottom == 0 else found == pytest.approx(top / bottom, abs=1e-9)


# -- streaming ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(2, 300),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    weighted=st.booleans(),
)
def test_stream_gives_the_same_bits(seed: int, rows: int, cuts: list[int], weighted: bool) -> None:
    labels, scores, weights = random_rows(seed, rows, 20)
    order = np.random.default_rng(seed).permutation(rows)
    whole = auc(labels, scores, weights if weighted else None)
    stream = AucAccumulator()
    edges = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    for first, last in pairwise(edges):
        part = order[first:last]
        stream.update(labels[part], scores[part], weights[part] if weighted else None)
        stream.compute()
    assert stream.compute() == whole


def test_stream_memory_is_bounded_by_distinct_scores() -> None:
    stream = AucAccumulator()
    rng = np.random.default_rng(0)
    for _ in range(30):
        stream.update(rng.integers(0, 2, 100_000), rng.integers(0, 100, 100_000) / 100)
    assert len(stream.curve().scores) == 100
    assert stream.curve().positives.sum() + stream.curve().negatives.sum() == 3_000_000


def test_empty_stream_is_nan() -> None:
    stream = AucAccumulator()
    assert math.isnan(stream.compute())
    stream.update(np.zeros(0), np.zeros(0))
    assert math.isnan(stream.compute())


# -- sets that define less ---------------------------------------------------------------------


def test_names_and_rows() -> None:
    labels, scores, _ = random_rows(3, 50, 9)
    names = ["auc", "logloss", "ne", "pr_auc", "calibration", "ece", "rows"]
    assert list(evaluate(labels, scores)) == names
    assert list(evaluate(labels, scores, groups=np.zeros(50))) == ["auc", "gauc", *names[1:]]
    assert evaluate(labels, scores)["rows"] == 50


def test_rows_without_a_user_are_no_user() -> None:
    labels = np.array([0, 1, 1, 0, 1, 0, 0, 1])
    scores = np.array([0.1, 0.9, 0.8, 0.2, 0.1, 0.9, 0.8, 0.3])
    users = np.array([1, 1, 2, 2, *[NULL_ID] * 4])
    assert gauc(labels, scores, users) == 1.0
    assert np.isnan(gauc(labels, scores, np.full(8, NULL_ID)))


def test_one_group_gives_gauc_equal_to_auc() -> None:
    labels, scores, _ = random_rows(4, 500, 30)
    metrics = evaluate(labels, scores, groups=np.full(500, 7))
    assert metrics["gauc"] == pytest.approx(metrics["auc"], abs=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_or_no_rows(rows: int, label: int) -> None:
    metrics = evaluate(np.full(rows, label), np.full(rows, 0.3), groups=np.zeros(rows))
    assert metrics["rows"] == rows
    undefined = {name for name, value in metrics.items() if math.isnan(value)}
    if rows == 0:
        assert undefined == set(metrics) - {"rows"}
    elif label == 0:
        assert undefined == {"auc", "gauc", "ne", "pr_auc", "calibration"}
    else:
        assert undefined == {"auc", "gauc", "ne"}


def test_nan_scores_make_every_metric_nan() -> None:
    metrics = evaluate(np.array([0, 1, 1]), np.array([0.1, np.nan, 0.3]), groups=np.zeros(3))
    assert all(math.isnan(value) for name, value in metrics.items() if name != "rows")


def test_zero_weights_leave_rows_out() -> None:
    labels, scores, weights = random_rows(5, 100, 10)
    weights[50:] = 0
    assert auc(labels, scores, weights) == auc(labels[:50], scores[:50], weights[:50])


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "said"),
    [
        ([0, 2], [0.1, 0.2], None, r"labels\[1\]"),
        ([0, np.nan], [0.1, 0.2], None, r"labels\[1\]"),
        ([0, 1, 1], [0.1, 0.2], None, "equally long"),
        ([0, 1], [0.1, 0.2], [1.0, -1.0], r"weights\[1\]"),
        ([0, 1], [0.1, 0.2], [1.0], "one per row"),
    ],
)
def test_bad_input_is_named(labels: list, scores: list, weights: list | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        auc(np.array(labels), np.array(scores), None if weights is None else np.array(weights))


# -- slices ------------------------------------------------------------------------------------


def test_slices_rank_lump_and_name_nulls() -> None:
    labels, scores, _ = random_rows(6, 100, 50)
    values = ["de"] * 40 + ["fr"] * 30 + [None] * 20 + ["it"] * 6 + ["es"] * 4
    table = slices(labels, scores, pa.array(values), top=3)
    assert table["value"].to_pylist() == ["de", "fr", "(null)", "(other)"]
    assert table["rows"].to_pylist() == [40, 30, 20, 10]
    expected = evaluate(labels[:40], scores[:40])
    assert {name: table[name][0].as_py() for name in expected} == expected
    assert table["auc"][3].as_py() == evaluate(labels[90:], scores[90:])["auc"]


@pytest.mark.parametrize("kind", ["dictionary", "chunked", "numpy"])
def test_slices_take_any_column(kind: str) -> None:
    labels, scores, _ = random_rows(7, 30, 9)
    plain = [5, 6, 5] * 10
    column = {
        "dictionary": pa.array(plain).dictionary_encode(),
        "chunked": pa.chunked_array([plain[:7], plain[7:]]),
        "numpy": np.array(plain),
    }[kind]
    table = slices(labels, scores, column, groups=np.arange(30) % 4)
    assert table["value"].to_pylist() == ["5", "6"]
    assert table["rows"].to_pylist() == [20, 10]
    five = np.array(plain) == 5
    expected = gauc(labels[five], scores[five], (np.arange(30) % 4)[five])
    assert table["gauc"][0].as_py() == pytest.approx(expected, abs=1e-12)


def test_slices_of_nothing_keep_their_columns() -> None:
    table = slices(np.zeros(0), np.zeros(0), pa.array([], pa.string()))
    assert table.num_rows == 0
    assert table.column_names == ["value", *evaluate(np.zeros(0), np.zeros(0))]
