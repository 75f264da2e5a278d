"""Plots of ranked targets, as matplotlib figures; `recsys.training.plots` has those of scores.

``ranks`` (N,): rank of the target of every row, from 1, infinity for one that cannot be
recommended (`recsys.training.ranking.target_ranks`).
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from recsys.training.curves import Array

POINTS = 100
GROUPS = 10
_SIZE = (9.6, 4.2)
_COLORS = ("#1f6fb4", "#d1603d")


def of_ranks(ranks: Array, targets: Array, counts: Array, title: str, k: int) -> dict[str, Figure]:
    """The two plots of one set of rows: ``cutoffs`` and ``popularity``."""
    return {
        "cutoffs": by_cutoff(ranks, title),
        "popularity": by_popularity(ranks, targets, counts, title, k),
    }


def by_cutoff(ranks: Array, title: str) -> Figure:
    """Recall@k and NDCG@k for k from 1 to `POINTS`."""
    cutoffs = np.arange(1, POINTS + 1)
    rows = max(len(ranks), 1)
    at_rank = np.bincount(ranks[ranks <= POINTS].astype(np.int64), minlength=POINTS + 1)[1:]
    figure = Figure(figsize=_SIZE, layout="constrained")
    lines = {
        "Recall@k": np.cumsum(at_rank) / rows,
        "NDCG@k": np.cumsum(at_rank / np.log2(1 + cutoffs)) / rows,
    }
    panels = figure.subplots(1, 2)
    for axes, color, (name, line) in zip(panels, _COLORS, lines.items(), strict=True):
        axes.plot(cutoffs, line, color=color, label=name)
        axes.plot(cutoffs[9], line[9], "o", color=color, markersize=5)
        axes.annotate(
            f"k = 10: {line[9]:.4f}",
            (cutoffs[9], line[9]),
            textcoords="offset points",
            xytext=(8, -10),
            fontsize=9,
        )
        axes.set(xlabel="k", ylabel=name, xlim=(0, POINTS), ylim=(0, None))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}: {len(ranks):,} rows")
    return figure


def by_popularity(ranks: Array, targets: Array, counts: Array, title: str, k: int) -> Figure:
    """Recall@k of the rows whose target (N,) is in each of `GROUPS` groups of equally many items,
    from the least to the most popular in training; below, the share of rows in each group.

    ``counts`` (V,): training frequency of each id. Ids that training never saw are in no group.
    """
    group = popularity_groups(counts)
    of_row = group[targets]
    known = of_row >= 0
    rows = np.bincount(of_row[known], minlength=GROUPS)
    hits = np.bincount(of_row[known], weights=ranks[known] <= k, minlength=GROUPS)
    recall = np.divide(hits, rows, out=np.zeros(GROUPS), where=rows > 0)
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    places = np.arange(GROUPS)
    upper.bar(places, recall, color=_COLORS[0], alpha=0.8)
    overall = float(np.mean(ranks <= k)) if len(ranks) else 0.0
    upper.axhline(overall, color=_COLORS[1], linewidth=1, label=f"all rows: {overall:.4f}")
    upper.set(title=title, ylabel=f"Recall@{k}")
    upper.legend(frameon=False)
    lower.bar(places, rows / max(len(ranks), 1), color="#8c8c8c")
    lower.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    lower.set(ylabel="Rows", xlabel=f"Items by popularity in training, {GROUPS} equal groups")
    lower.set_xticks(places, ["rare", *[""] * (GROUPS - 2), "popular"])
    for axes in (upper, lower):
        axes.grid(alpha=0.25, linewidth=0.6, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def popularity_groups(counts: Array) -> Array:
    """The group (V,) of each id, 0 for the rarest items; -1 for ids without a count."""
    group = np.full(len(counts), -1)
    items = np.flatnonzero(counts)
    ranked = items[np.argsort(counts[items], kind="stable")]
    group[ranked] = np.arange(len(ranked)) * GROUPS // max(len(ranked), 1)
    return group
