"""The table that exact metrics are read from: distinct scores with the weight of each class.

It is sorted once, so ties are exact and row order cannot matter, and a streaming evaluation that
builds the same table chunk by chunk (`AucAccumulator`) gives the same value to the last bit.

Shapes: ``labels`` (B,) in {0, 1}, ``scores`` (B,), ``weights`` (B,) not negative.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.errors import InputError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

CLIP = 1e-7
"""Probabilities are clipped to ``[CLIP, 1 - CLIP]`` in logloss, as FuxiCTR does: one float32 step
below 1 is 6e-8, so a saturated sigmoid costs at most 16.1 nats instead of infinity."""

ECE_BINS = 20
_MERGE_ROWS = 1 << 20
_NAN = float("nan")


class Curve(NamedTuple):
    """Distinct scores, rising, with the weight of positive and of negative rows at each.

    Shapes: all (K,) float64, K distinct scores.
    """

    scores: Floats
    positives: Floats
    negatives: Floats


class _Tally(NamedTuple):
    """Rows counted by distinct (score, weight). ``weights`` is (1,) when all rows weigh 1.

    Counts, not sums of weights: integers add up to the same whatever the order of the chunks.
    """

    scores: Floats
    weights: Floats
    positives: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64]


def curve(labels: Array, scores: Array, weights: Array | None = None) -> Curve:
    """The table of a set of rows; raises `InputError` for wrong shapes, labels or weights."""
    return _curve(_tally(labels, scores, weights))


class AucAccumulator:
    """AUC over a stream of chunks: the same bits as `auc` on all rows at once, whatever the chunks.

    Memory: 24 bytes per distinct score (32 per distinct pair of score and weight), plus the same
    for at most a million rows not merged yet.
    """

    def __init__(self) -> None:
        self._merged: _Tally | None = None
        self._pending: list[_Tally] = []
        self._pending_rows = 0

    def update(self, labels: Array, scores: Array, weights: Array | None = None) -> None:
        """Adds rows; shapes (B,)."""
        tally = _tally(labels, scores, weights)
        self._pending.append(tally)
        self._pending_rows += len(tally.scores)
        # Waiting for as much as is merged already keeps the total work O(n log n).
        if self._pending_rows > max(
            _MERGE_ROWS, 0 if self._merged is None else len(self._merged[0])
        ):
            self._merge()

    def compute(self) -> float:
        """AUC of all rows so far; more may follow."""
        return curve_auc(self.curve())

    def curve(self) -> Curve:
        """The distinct scores of all rows so far."""
        self._merge()
        return _curve(
            _tally(np.zeros(0), np.zeros(0), None) if self._merged is None else self._merged
        )

    def _merge(self) -> None:
        parts = [*([] if self._merged is None else [self._merged]), *self._pending]
        if len(parts) > 1:
            unit = all(len(part.weights) == 1 and part.weights[0] == 1.0 for part in parts)
            weights = (
                np.ones(1)
                if unit
                else np.concatenate([np.broadcast_to(p.weights, p.scores.shape) for p in parts])
            )
            self._merged = _count(
                np.concatenate([part.scores for part in parts]),
                weights,
                np.concatenate([part.positives for part in parts]),
                np.concatenate([part.negatives for part in parts]),
            )
        elif parts:
            self._merged = parts[0]
        self._pending, self._pending_rows = [], 0


def curve_auc(table: Curve) -> float:
    """Area under the ROC curve, ties between the classes count one half."""
    positives, negatives = table.positives.sum(), table.negatives.sum()
    if not _defined(table) or positives == 0 or negatives == 0:
        return _NAN
    below = np.cumsum(table.negatives) - table.negatives
    won = (table.positives * (below + 0.5 * table.negatives)).sum()
    return float(won / (positives * negatives))


def curve_logloss(table: Curve) -> float:
    """Mean negative log-likelihood in nats."""
    if not _defined(table):
        return _NAN
    p = np.clip(table.scores, CLIP, 1 - CLIP)
    total = (table.positives + table.negatives).sum()
    return float(-(table.positives * np.log(p) + table.negatives * np.log1p(-p)).sum() / total)


def curve_normalised_entropy(table: Curve) -> float:
    """Logloss over the entropy of the base rate."""
    positives, negatives = table.positives.sum(), table.negatives.sum()
    if not _defined(table) or positives == 0 or negatives == 0:
        return _NAN
    rate = positives / (positives + negatives)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
    return float(curve_logloss(table) / entropy)


def curve_pr_auc(table: Curve) -> float:
    """Average precision: precision at each distinct score, weighted by the recall it adds."""
    if not _defined(table) or table.positives.sum() == 0:
        return _NAN
    above = np.cumsum(table.positives[::-1])
    predicted = above + np.cumsum(table.negatives[::-1])
    precision = np.divide(above, predicted, out=np.zeros_like(above), where=predicted > 0)
    return float((precision * table.positives[::-1]).sum() / above[-1])


def curve_calibration(table: Curve) -> float:
    """Mean score over mean label."""
    positives = table.positives.sum()
    if not _defined(table) or positives == 0:
        return _NAN
    return float((table.scores * (table.positives + table.negatives)).sum() / positives)


class Bins(NamedTuple):
    """Score bins of about equal weight; shapes all (bins that hold anything,)."""

    predicted: Floats
    observed: Floats
    weight: Floats


def curve_bins(table: Curve, bins: int) -> Bins:
    """Mean score, mean label and weight of equal-mass bins; equal scores always share a bin."""
    mass = table.positives + table.negatives
    kept = mass > 0
    scores, positives, mass = table.scores[kept], table.positives[kept], mass[kept]
    if len(mass) == 0:
        return Bins(*(np.zeros(0) for _ in range(3)))
    middle = (np.cumsum(mass) - 0.5 * mass) / mass.sum()
    number = np.minimum((middle * bins).astype(np.int64), bins - 1)
    starts = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
    weight = np.add.reduceat(mass, starts)
    return Bins(
        np.add.reduceat(scores * mass, starts) / weight,
        np.add.reduceat(positives, starts) / weight,
        weight,
    )


def curve_ece(table: Curve, *, bins: int = ECE_BINS) -> float:
    """Weighted mean of |mean score - mean label| over equal-mass bins."""
    if not _defined(table):
        return _NAN
    held = curve_bins(table, bins)
    return float((held.weight * np.abs(held.predicted - held.observed)).sum() / held.weight.sum())


def _defined(table: Curve) -> bool:
    """Whether there is any weight and no NaN score (NaN sorts last)."""
    mass = (table.positives + table.negatives).sum()
    return bool(mass > 0) and not np.isnan(table.scores[-1])


def columns(
    labels: Array, scores: Array, weights: Array | None
) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
    """Checked columns: positive (B,) bool, score (B,) and weight (B,), or (1,) of ones."""
    label = np.asarray(labels)
    score = np.asarray(scores, dtype=np.float64)
    if label.ndim != 1 or label.shape != score.shape:
        raise InputError(
            f"labels {label.shape} and scores {score.shape} must be flat and equally long"
        )
    positive = label == 1
    wrong = ~(positive | (label == 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(f"labels[{row}] is {label[row]!r}; a label is 0 or 1")
    if weights is None:
        return positive, score, np.ones(1)
    weight = np.asarray(weights, dtype=np.float64)
    if weight.shape != score.shape:
        raise InputError(f"weights {weight.shape} and scores {score.shape} differ; one per row")
    if not (weight >= 0).all() or np.isinf(weight).any():
        row = int(np.argmax(~(weight >= 0) | np.isinf(weight)))
        raise InputError(f"weights[{row}] is {weight[row]}; a weight is finite and not negative")
    # A log without weights arrives as ones; it need not be sorted by them.
    return positive, score, np.ones(1) if (weight == 1).all() else weight


def _tally(labels: Array, scores: Array, weights: Array | None) -> _Tally:
    positive, score, weight = columns(labels, scores, weights)
    return _count(score, weight, positive.astype(np.int64), (~positive).astype(np.int64))


def _count(
    scores: Floats,
    weights: Floats,
    positives: npt.NDArray[np.int64],
    negatives: npt.NDArray[np.int64],
) -> _Tally:
    if len(scores) == 0:
        return _Tally(scores, np.ones(1), positives, negatives)
    weighted = len(weights) == len(scores) and len(weights) > 1
    order = np.lexsort((weights, scores)) if weighted else np.argsort(scores)
    scores = scores[order]
    new = np.r_[True, scores[1:] != scores[:-1]]
    if weighted:
        weights = weights[order]
        new |= np.r_[True, weights[1:] != weights[:-1]]
    starts = np.flatnonzero(new)
    return _Tally(
        scores[starts],
        weights[starts] if weighted else weights,
        np.add.reduceat(positives[order], starts),
        np.add.reduceat(negatives[order], starts),
    )


def _curve(tally: _Tally) -> Curve:
    positives = tally.positives * tally.weights
    negatives = tally.negatives * tally.weights
    if len(tally.weights) == 1:
        return Curve(tally.scores, positives, negatives)
    starts = np.flatnonzero(np.r_[True, tally.scores[1:] != tally.scores[:-1]])
    return Curve(
        tally.scores[starts],
        np.add.reduceat(positives, starts),
        np.add.reduceat(negatives, starts),
    )
