"""Confidence interval of the difference of two GAUCs: a bootstrap over users.

Rows of one user depend on each other, users do not: whole users are drawn with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recsys.training.curves import Array
from recsys.training.metrics import group_aucs
from recsys.training.significance import Difference


def gauc_difference(
    labels: Array,
    a: Sequence[Array],
    b: Sequence[Array],
    groups: Array,
    *,
    level: float = 0.95,
    samples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """How much better ``b`` ranks within users than ``a``: mean GAUC of the score columns (N,) of
    ``b`` minus that of ``a``, which may each be several runs (seeds) of one model.

    Percentile interval over ``samples`` draws of users; the p-value is twice the share of draws on
    the other side of zero, at least ``1 / samples``. It covers the choice of users, not of seeds.
    NaN if no user has both classes; bounds and p are NaN if only one has.
    """
    runs_a = [group_aucs(labels, scores, groups) for scores in a]
    runs_b = [group_aucs(labels, scores, groups) for scores in b]
    impressions = runs_a[0][0]
    if any(len(aucs) == 0 for _, aucs in (*runs_a, *runs_b)):
        return Difference(math.nan, math.nan, math.nan, math.nan)
    gain = np.mean([aucs for _, aucs in runs_b], axis=0) - np.mean([aucs for _, aucs in runs_a], 0)
    value = float((impressions * gain).sum() / impressions.sum())
    if len(gain) < 2:
        return Difference(value, math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    draws = np.empty(samples)
    for draw in range(samples):
        users = rng.integers(0, len(gain), len(gain))
        weight = impressions[users]
        draws[draw] = (weight * gain[users]).sum() / weight.sum()
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    tail = min((draws <= 0).mean(), (draws >= 0).mean())
    p_value = 1.0 if not gain.any() else min(1.0, max(2 * float(tail), 1 / samples))
    return Difference(value, float(low), float(high), p_value)
