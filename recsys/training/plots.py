"""Plots of a run, as matplotlib figures (object interface, no global state, no window).

Every function takes one or several named curves (`recsys.training.curves.curve`) and draws them
over one another; the caller saves or logs the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from recsys.training.curves import (
    Array,
    Curve,
    Floats,
    curve,
    curve_auc,
    curve_bins,
    curve_calibration,
    curve_ece,
    curve_pr_auc,
)

POINTS = 2000  # per line: more cannot be seen
BINS = 60
RELIABILITY_BINS = 20
_SIZE = (6.4, 5.2)
_COLORS = ("#1f6fb4", "#d1603d", "#3a8f5c", "#8a63b0", "#b8902c", "#4a9aa8", "#b0527a", "#666666")
_GREY = "#8c8c8c"

Lines = Sequence[tuple[str, str]]


def of_predictions(
    labels: Array, scores: Array, title: str, weights: Array | None = None
) -> dict[str, Figure]:
    """The four plots of one set of rows: ``roc``, ``pr``, ``reliability``, ``scores``."""
    table = curve(labels, scores, weights)
    return {
        "roc": roc({"": table}, title),
        "pr": pr({"": table}, title),
        "reliability": reliability({"": table}, title),
        "scores": score_histogram(table, title),
    }


def roc(curves: Mapping[str, Curve], title: str) -> Figure:
    """True positive rate against false positive rate."""
    figure, axes = _single(title, "False positive rate", "True positive rate")
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="chance")
    for color, (name, table) in zip(_colors(curves), curves.items(), strict=True):
        hits = np.r_[0.0, np.cumsum(table.positives[::-1])]
        alarms = np.r_[0.0, np.cumsum(table.negatives[::-1])]
        if hits[-1] == 0 or alarms[-1] == 0:
            continue
        kept = _thin(alarms + hits)
        label = _label(name, f"AUC {curve_auc(table):.5f}")
        axes.plot(alarms[kept] / alarms[-1], hits[kept] / hits[-1], color=color, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.legend(loc="lower right", frameon=False)
    return figure


def pr(curves: Mapping[str, Curve], title: str) -> Figure:
    """Precision against recall, with the base rate that a constant reaches."""
    figure, axes = _single(title, "Recall", "Precision")
    rates = set()
    for color, (name, table) in zip(_colors(curves), curves.items(), strict=True):
        hits = np.cumsum(table.positives[::-1])
        named = hits + np.cumsum(table.negatives[::-1])
        if len(hits) == 0 or hits[-1] == 0:
            continue
        kept = _thin(named)
        label = _label(name, f"AP {curve_pr_auc(table):.5f}")
        axes.plot(hits[kept] / hits[-1], hits[kept] / named[kept], color=color, label=label)
        rates.add(round(hits[-1] / named[-1], 6))
    for number, rate in enumerate(sorted(rates)):
        label = "base rate" if number == 0 else "_"  # one legend entry for all
        axes.axhline(rate, color=_GREY, linestyle="--", linewidth=1, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    if rates:
        axes.legend(loc="best", frameon=False)
    return figure


def reliability(curves: Mapping[str, Curve], title: str) -> Figure:
    """Observed click rate against the mean score of bins of equal weight; below, rows by score.

    Both axes are logarithmic when the rarest bins lie below a hundredth: where clicks are rare,
    that is where the rows are.
    """
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes, counts = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    held = {name: curve_bins(table, RELIABILITY_BINS) for name, table in curves.items()}
    values = np.concatenate([np.r_[bins.predicted, bins.observed] for bins in held.values()])
    values = values[values > 0]
    low, high = (values.min(), values.max()) if len(values) else (0.1, 1.0)
    logarithmic = low < 0.01
    low, high = (low / 1.5, min(1.0, high * 1.5)) if logarithmic else (0.0, min(1.0, high * 1.1))
    axes.plot([low, high], [low, high], color=_GREY, linestyle="--", linewidth=1, label="perfect")
    edges = np.geomspace(low, high, BINS) if logarithmic else np.linspace(low, high, BINS)
    for color, (name, bins) in zip(_colors(curves), held.items(), strict=True):
        table = curves[name]
        told = f"calibration {curve_calibration(table):.3f}, ECE {curve_ece(table):.4f}"
        axes.plot(
            bins.predicted, bins.observed, "o-", color=color, markersize=4, label=_label(name, told)
        )
        if logarithmic:  # bins without a click are below any such axis
            none = bins.predicted[bins.observed == 0]
            axes.plot(none, np.full(len(none), low), "v", color=color, markersize=5, clip_on=False)
        scores = table.scores.clip(edges[0], edges[-1])  # the ends hold what lies beyond
        counts.stairs(
            _weights(scores, table.positives + table.negatives, edges),
            edges,
            color=color,
            fill=len(curves) == 1,
            alpha=0.8,
        )
    if logarithmic:
        axes.set(xscale="log", yscale="log")
    _dress(axes, title, "", "Observed click rate")
    _dress(counts, "", "Mean predicted probability", "Rows")
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.legend(loc="best", frameon=False)
    return figure


def score_histogram(table: Curve, title: str) -> Figure:
    """How the scores of each class are spread, as shares of the class."""
    figure, axes = _single(title, "Predicted probability", "Share of the class per bin")
    high = float(table.scores[-1]) if len(table.scores) else 1.0
    edges = np.linspace(0.0, high if high > 0 else 1.0, BINS + 1)
    for name, weight, color in (
        ("not clicked", table.negatives, _COLORS[0]),
        ("clicked", table.positives, _COLORS[1]),
    ):
        total = weight.sum()
        share = _weights(table.scores, weight, edges) / (total if total > 0 else 1.0)
        label = f"{name} ({total:,.0f} rows)"
        axes.stairs(share, edges, color=color, fill=True, alpha=0.35)
        axes.stairs(share, edges, color=color, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set(xlim=(0, edges[-1]))
    axes.legend(loc="best", frameon=False)
    return figure


def curves(
    history: Sequence[Mapping[str, float]],
    title: str = "Training",
    *,
    losses: Lines = (("train_loss", "train loss"), ("logloss", "valid logloss")),
    metrics: Lines = (("auc", "valid AUC"), ("gauc", "valid GAUC")),
    y: str = "AUC",
) -> Figure:
    """Losses and metrics (axis ``y``) by epoch; ``history`` holds one mapping per epoch. Lines are
    (key, label); those without values are left out, the best of a valid one is marked."""
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    epochs = [entry.get("epoch", number) for number, entry in enumerate(history)]
    wanted = ((losses, np.nanargmin), (metrics, np.nanargmax))
    for axes, (lines, best) in zip(panels, wanted, strict=True):
        for color, (key, label) in zip(_COLORS, lines, strict=False):
            line = np.array([entry.get(key, np.nan) for entry in history])
            if np.isnan(line).all():
                continue
            axes.plot(epochs, line, "o-", color=color, markersize=3.5, label=label)
            if label.startswith("valid"):
                top = int(best(line))
                axes.plot(epochs[top], line[top], "o", color=color, markersize=9, fillstyle="none")
                axes.annotate(
                    f"{line[top]:.5f}",
                    (epochs[top], line[top]),
                    textcoords="offset points",
                    xytext=(0, 9),
                    ha="center",
                    fontsize=8,
                )
        _dress(axes, "", "Epoch", "Loss (nats)" if best is np.nanargmin else y)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.06, y=0.14)
        if axes.lines:
            axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def spread(groups: Mapping[str, tuple[Sequence[float], float | None]], title: str) -> Figure:
    """One line of dots per name (a metric over seeds), its mean, and the published value."""
    figure = Figure(figsize=(_SIZE[0] + 1.5, 1.2 + 0.32 * len(groups)), layout="constrained")
    axes = figure.subplots()
    _dress(axes, title, "", "")
    ranked = sorted(groups.items(), key=lambda item: float(np.mean(item[1][0])))
    for place, (_, (values, published)) in enumerate(ranked):
        axes.plot(values, [place] * len(values), "o", color=_COLORS[0], alpha=0.5, markersize=5)
        axes.plot(np.mean(values), place, "|", color=_COLORS[0], markersize=14, markeredgewidth=2)
        if published is not None:
            axes.plot(published, place, "x", color=_COLORS[1], markersize=7)
    axes.plot([], [], "o", color=_COLORS[0], alpha=0.5, label="one seed")
    axes.plot([], [], "|", color=_COLORS[0], markersize=10, label="mean")
    axes.plot([], [], "x", color=_COLORS[1], label="published")
    axes.set_yticks(range(len(ranked)), [name for name, _ in ranked])
    axes.legend(frameon=False, loc="lower right")
    return figure


def pareto(
    lines: Mapping[str, Sequence[tuple[int, Sequence[float], Sequence[float]]]],
    metrics: tuple[str, str],
    title: str,
    *,
    baseline: str,
    best: float | None = None,
) -> Figure:
    """Two metrics against stored bytes, on a logarithmic axis: one line per method through the
    means over seeds, a dot per seed; ``baseline`` is dashed. ``lines``: method -> (bytes, values of
    the first metric, of the second). ``best``: the best possible value of the first metric."""
    figure = Figure(figsize=(2 * _SIZE[0], 1.2 * _SIZE[1]), layout="constrained")
    markers = "os^vD<>pPX*"
    for which, axes in enumerate(figure.subplots(1, 2), start=1):
        _dress(axes, "", "Stored bytes of all tables", f"Test {metrics[which - 1]}")
        axes.set_xscale("log")
        for place, (name, points) in enumerate(sorted(lines.items())):
            plain = name == baseline
            color = "black" if plain else _COLORS[place % len(_COLORS)]
            means = [float(np.mean(point[which])) for point in points]
            axes.plot(
                [point[0] for point in points],
                means,
                marker=markers[place % len(markers)],
                markersize=5,
                color=color,
                linestyle="--" if plain else ("-", ":", "-.")[place // len(_COLORS) % 3],
                linewidth=1.6 if plain else 1.0,
                label=f"{name} (plain table)" if plain else name,
            )
            for size, *values in points:
                seeds = values[which - 1]
                axes.plot([size] * len(seeds), seeds, ".", color=color, alpha=0.35, markersize=3)
        if best is not None and which == 1:
            axes.axhline(best, color="gray", linewidth=0.8, linestyle=":", label="best possible")
    figure.axes[1].legend(
        frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5)
    )
    figure.suptitle(title)
    return figure


def histogram(values: Array, title: str, x: str, threshold: float | None = None) -> Figure:
    """How ``values`` (N,) are spread; a line at ``threshold`` with the share above it."""
    figure, axes = _single(title, x, "Count")
    # in float32 the edges of bins between values that are nearly equal would coincide
    axes.hist(np.asarray(values, np.float64), bins=BINS, color=_COLORS[0], alpha=0.8)
    if threshold is not None:
        share = float(np.mean(values > threshold)) if len(values) else 0.0
        axes.axvline(threshold, color=_COLORS[1], label=f"{share:.1%} above {threshold:.3g}")
        axes.legend(frameon=False)
    return figure


def _single(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    _dress(axes, title, x, y)
    return figure, axes


def _dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _colors(curves: Mapping[str, Curve]) -> list[str]:
    return [_COLORS[number % len(_COLORS)] for number in range(len(curves))]


def _label(name: str, value: str) -> str:
    return f"{name}: {value}" if name else value


def _thin(position: Floats) -> Array:
    """Indices of about `POINTS` entries, evenly spread over a rising ``position``, ends kept."""
    if len(position) <= POINTS:
        return np.arange(len(position))
    wanted = np.linspace(position[0], position[-1], POINTS)
    return np.unique(np.r_[np.searchsorted(position, wanted[:-1]), len(position) - 1])


def _weights(scores: Floats, weights: Floats, edges: Floats) -> Floats:
    held: Floats = np.histogram(scores, bins=edges, weights=weights)[0].astype(np.float64)
    return held
