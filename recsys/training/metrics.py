"""Pointwise metrics of click prediction: exact, on numpy, in float64.

Everything that does not look at groups is read from one table of distinct scores (`curves`), so
ties are exact and row order cannot matter.

Shapes: ``labels`` (B,) in {0, 1}, ``scores`` (B,) probabilities, ``weights`` (B,) not negative,
``groups`` (B,) of any sortable type. What a set cannot define (AUC of one class, anything of zero
rows or of NaN scores) is NaN, never an error; wrong shapes, labels and weights are `InputError`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from recsys.training.curves import (
    CLIP,
    ECE_BINS,
    Array,
    AucAccumulator,
    columns,
    curve,
    curve_auc,
    curve_calibration,
    curve_ece,
    curve_logloss,
    curve_normalised_entropy,
    curve_pr_auc,
)
from recsys.types import Metrics
from serving.errors import InputError
from serving.ids import NULL_ID

__all__ = [
    "CLIP",
    "AucAccumulator",
    "auc",
    "calibration",
    "ece",
    "evaluate",
    "gauc",
    "group_aucs",
    "logloss",
    "normalised_entropy",
    "pr_auc",
    "slices",
]


def auc(labels: Array, scores: Array, weights: Array | None = None) -> float:
    """Area under the ROC curve; a tie between the classes counts one half.

    Equals ``sklearn.metrics.roc_auc_score``. NaN with one class only.
    """
    return curve_auc(curve(labels, scores, weights))


def gauc(labels: Array, scores: Array, groups: Array, weights: Array | None = None) -> float:
    """Mean AUC within groups (users), weighted by their impressions (rows, or sum of weights).

    Groups of one class have no AUC and are out of both sums (Zhu et al. 2017, "Optimized cost per
    click in Taobao display advertising", https://arxiv.org/abs/1703.02091), and so are rows whose
    group is null (`NULL_ID`). NaN if none is left.
    """
    impressions, aucs = group_aucs(labels, scores, groups, weights)
    if len(aucs) == 0:
        return float("nan")
    return float((impressions * aucs).sum() / impressions.sum())


def group_aucs(
    labels: Array, scores: Array, groups: Array, weights: Array | None = None
) -> tuple[Array, Array]:
    """Impressions (G,) and AUC (G,) of every group that has both classes, by rising group; rows
    whose group is `NULL_ID` are in none.

    Which groups these are does not depend on the scores. None if a score is NaN.
    """
    positive, score, weight = columns(labels, scores, weights)
    group = np.asarray(groups)
    if group.shape != score.shape:
        raise InputError(f"groups has shape {group.shape}, scores {score.shape}; give one per row")
    if len(score) == 0 or np.isnan(score).any():
        return np.zeros(0), np.zeros(0)
    if group.dtype == object:
        group = np.unique(group, return_inverse=True)[1]
    order = np.lexsort((score, group))
    if group.dtype.kind == "i":
        order = order[group[order] != NULL_ID]
    if len(order) == 0:
        return np.zeros(0), np.zeros(0)
    group, score = group[order], score[order]
    rows = np.broadcast_to(weight, positive.shape)[order]
    new_group = np.r_[True, group[1:] != group[:-1]]
    ties = np.flatnonzero(new_group | np.r_[True, score[1:] != score[:-1]])
    wins = np.add.reduceat(rows * positive[order], ties)
    losses = np.add.reduceat(rows * ~positive[order], ties)
    first = np.flatnonzero(new_group[ties])  # the first tie of each group
    below = np.cumsum(losses) - losses
    below -= np.repeat(below[first], np.diff(np.r_[first, len(ties)]))
    won = np.add.reduceat(wins * (below + 0.5 * losses), first)
    positives = np.add.reduceat(wins, first)
    negatives = np.add.reduceat(losses, first)
    both = (positives > 0) & (negatives > 0)
    return (positives + negatives)[both], won[both] / (positives * negatives)[both]


def logloss(labels: Array, scores: Array, weights: Array | None = None) -> float:
    """Mean negative log-likelihood in nats, scores clipped by `CLIP`."""
    return curve_logloss(curve(labels, scores, weights))


def normalised_entropy(labels: Array, scores: Array, weights: Array | None = None) -> float:
    """Logloss over the entropy of the base rate: 1 is a constant at the base rate, lower is better.

    He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook". NaN when there is
    one class only.
    """
    return curve_normalised_entropy(curve(labels, scores, weights))


def pr_auc(labels: Array, scores: Array, weights: Array | None = None) -> float:
    """Average precision, as ``sklearn.metrics.average_precision_score``. NaN without positives."""
    return curve_pr_auc(curve(labels, scores, weights))


def calibration(labels: Array, scores: Array, weights: Array | None = None) -> float:
    """Mean score over mean label: above 1 predicts too many clicks. NaN without positives."""
    return curve_calibration(curve(labels, scores, weights))


def ece(
    labels: Array, scores: Array, weights: Array | None = None, *, bins: int = ECE_BINS
) -> float:
    """Expected calibration error: mean |mean score - mean label| over bins of equal weight.

    Equal mass and not equal width, because click probabilities crowd near zero and would share one
    bin. Equal scores always share a bin, so the value does not depend on row order.
    """
    return curve_ece(curve(labels, scores, weights), bins=bins)


def evaluate(
    labels: Array, scores: Array, groups: Array | None = None, weights: Array | None = None
) -> Metrics:
    """All metrics of a set of rows: ``auc``, ``gauc`` (only with ``groups``), ``logloss``, ``ne``,
    ``pr_auc``, ``calibration``, ``ece``, ``rows``."""
    table = curve(labels, scores, weights)
    metrics = {"auc": curve_auc(table)}
    if groups is not None:
        metrics["gauc"] = gauc(labels, scores, groups, weights)
    return metrics | {
        "logloss": curve_logloss(table),
        "ne": curve_normalised_entropy(table),
        "pr_auc": curve_pr_auc(table),
        "calibration": curve_calibration(table),
        "ece": curve_ece(table),
        "rows": float(len(scores)),
    }


def slices(
    labels: Array,
    scores: Array,
    values: pa.Array[Any] | pa.ChunkedArray[Any] | Array,
    *,
    groups: Array | None = None,
    weights: Array | None = None,
    top: int = 20,
) -> pa.Table:
    """Metrics of the rows of each value of a column, the most frequent first.

    ``values`` (B,): any type with equality, no lists. The result has a text column ``value`` and
    one column per metric of `evaluate`; the ``top`` values have their own row (equally frequent
    ones by first appearance), all others share the last row, ``(other)``. Nulls are the value
    ``(null)``.
    """
    column: Any = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if len(column) != len(scores):
        raise InputError(f"values has {len(column)} rows, scores {len(scores)}; give one per row")
    if pa.types.is_nested(column.type):
        raise InputError(f"a slice needs one value a row, not {column.type}")
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode(null_encoding="encode")
    # A dictionary column may keep nulls outside its dictionary: they become one more code.
    names = ["(null)" if value is None else str(value) for value in column.dictionary.to_pylist()]
    codes = column.indices.fill_null(len(names)).to_numpy(zero_copy_only=False).astype(np.int64)
    names.append("(null)")
    counts = np.bincount(codes, minlength=len(names))
    ranking = np.argsort(-counts, kind="stable")
    place = np.empty_like(ranking)
    place[ranking] = np.arange(len(ranking))
    bucket = np.minimum(place, top)[codes]
    order = np.argsort(bucket, kind="stable")
    ends = np.cumsum(np.bincount(bucket, minlength=top + 1))
    rows = []
    for number, end in enumerate(ends):
        part = order[(ends[number - 1] if number else 0) : end]
        if len(part) == 0:
            continue
        name = names[ranking[number]] if number < top else "(other)"
        metrics = evaluate(
            labels[part],
            scores[part],
            None if groups is None else groups[part],
            None if weights is None else weights[part],
        )
        rows.append({"value": name, **metrics})
    names_of = evaluate(labels[:0], scores[:0], None if groups is None else groups[:0])
    types: dict[str, pa.DataType] = {"value": pa.string()}
    types |= dict.fromkeys(names_of, pa.float64())
    return pa.Table.from_pylist(rows, schema=pa.schema(types))
