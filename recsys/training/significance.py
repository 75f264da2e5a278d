"""Confidence intervals of AUC and of the difference of two AUCs on the same rows.

DeLong's variance (DeLong, DeLong, Clarke-Pearson 1988, "Comparing the areas under two or more
correlated receiver operating characteristic curves", Biometrics 44) by mid-ranks in O(n log n)
(Sun and Xu 2014, "Fast implementation of DeLong's algorithm", IEEE SPL 21). Rows are taken as
independent; with many rows of few users the true interval is wider.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from recsys.training.curves import Array, Floats, columns


class Interval(NamedTuple):
    """An AUC with its confidence bounds, inside [0, 1]; NaN where one class is missing."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """AUC of ``b`` minus AUC of ``a``, its bounds, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p_value: float


def auc_interval(labels: Array, scores: Array, level: float = 0.95) -> Interval:
    """AUC and its normal interval (Wald, cut at 0 and 1; as pROC's ``ci.auc``).

    The bounds need two rows of each class and are NaN with fewer.
    """
    wins, losses = _placements(labels, scores)
    if len(wins) == 0 or len(losses) == 0 or np.isnan(wins).any():
        return Interval(math.nan, math.nan, math.nan)
    value = float(wins.mean())
    half = _half_width(wins, losses, level)
    low, high = np.clip((value - half, value + half), 0.0, 1.0)  # NaN stays NaN
    return Interval(value, float(low), float(high))


def auc_difference(labels: Array, a: Array, b: Array, level: float = 0.95) -> Difference:
    """How much better ``b`` ranks than ``a`` on the same rows, paired (as pROC's ``roc.test``).

    Two score columns that rank alike differ by 0 with certainty: bounds 0, p-value 1.
    """
    return auc_mean_difference(labels, a, [b], level)


def auc_mean_difference(
    labels: Array, a: Array, others: Sequence[Array], level: float = 0.95
) -> Difference:
    """The mean of `auc_difference` over ``others``, with one interval for all of it.

    DeLong's variance of the contrast "mean AUC of the others minus AUC of ``a``": the others are
    correlated, as they score the same rows, and that is counted.
    """
    wins_a, losses_a = _placements(labels, a)
    placed = [_placements(labels, other) for other in others]
    wins = np.mean([wins_b - wins_a for wins_b, _ in placed], axis=0)
    losses = np.mean([losses_b - losses_a for _, losses_b in placed], axis=0)
    if len(wins) == 0 or len(losses) == 0 or np.isnan(wins).any():
        return Difference(math.nan, math.nan, math.nan, math.nan)
    value = float(wins.mean())
    error = _standard_error(wins, losses)
    half = _half_width(wins, losses, level)
    if error == 0.0:
        p_value = 1.0 if value == 0.0 else 0.0
    else:
        p_value = math.erfc(abs(value) / error / math.sqrt(2.0))
    return Difference(value, value - half, value + half, p_value)


def _placements(labels: Array, scores: Array) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative the share of positives
    above it (ties half): shapes (P,) and (N,), each with the AUC as its mean."""
    positive, score, _ = columns(labels, scores, None)
    ahead, behind = score[positive], score[~positive]
    if len(ahead) == 0 or len(behind) == 0 or np.isnan(score).any():
        return np.full(len(ahead), np.nan), np.full(len(behind), np.nan)
    wins = _midrank(np.sort(behind), ahead) / len(behind)
    losses = 1.0 - _midrank(np.sort(ahead), behind) / len(ahead)
    return wins, losses


def _midrank(ordered: Floats, values: Floats) -> Floats:
    """How many of ``ordered`` lie below each value, ties counting half."""
    # Rising needles keep the binary search in cache: 5x faster at a million rows.
    order = np.argsort(values)
    needles = values[order]
    below = np.searchsorted(ordered, needles, side="left")
    ranks: npt.NDArray[np.float64] = np.empty(len(values))
    ranks[order] = 0.5 * (below + np.searchsorted(ordered, needles, side="right"))
    return ranks


def _standard_error(wins: Floats, losses: Floats) -> float:
    if len(wins) < 2 or len(losses) < 2:
        return math.nan
    return math.sqrt(wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses))


def _half_width(wins: Floats, losses: Floats, level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2) * _standard_error(wins, losses)
