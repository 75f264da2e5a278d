"""Permutation importance: how much worse a model ranks when one column is shuffled among rows.

Breiman 2001, "Random forests", Machine Learning 45; Fisher, Rudin and Dominici 2019,
https://arxiv.org/abs/1801.01489. It needs scores only, so any model will do. A column that others
can stand in for shows little, and shuffling makes rows that never occur: it says what this model
leans on, not what the world does.

**Intervals.** With R shuffles, the drop in AUC is the AUC as it is minus the mean AUC of the R
shuffled scorings. Its interval is DeLong's, paired on the same rows (see `significance`), of that
very contrast; that of the rise in logloss is normal. A row counts in it twice, by its loss with the
values of others and by the losses of the rows that got its own: all shuffles share both. (The
variance of the mean of these sums is a little too large for few shuffles, never too small.) Every
row counts once (no weights), and an interval is for one column: among many useless columns, one in
twenty has a 95 % interval without 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from recsys.features.hashing import salt, splitmix64_np
from recsys.training.curves import CLIP, Array, Floats
from recsys.training.significance import auc_mean_difference
from recsys.types import Batch, InputField

Score = Callable[[Batch], Array]
"""Raw `Batch` of B rows -> probabilities (B,)."""

PICTURE = "plots/importance.png"
"""Where a run's picture lies in its artefacts."""

BATCH_ROWS = 4096
_BARS = 60  # more cannot be read
_BLUE, _ORANGE, _GREY = "#1f6fb4", "#d1603d", "#8c8c8c"


class Estimate(NamedTuple):
    """A value with its confidence bounds."""

    value: float
    low: float
    high: float


class Importance(NamedTuple):
    """What shuffling ``column`` costs: ``auc_drop`` and ``logloss_rise`` (nats), both positive
    for a column that helps."""

    column: str
    auc_drop: Estimate
    logloss_rise: Estimate


class _Place(NamedTuple):
    """Where a column lies in a raw batch: columns of ids and floats, entries of lists."""

    ids: list[int]
    floats: list[int]
    lists: list[int]


def permutation_importance(
    score: Score,
    raw: Batch,
    labels: Array,
    inputs: Sequence[InputField],
    *,
    repeats: int = 5,
    seed: int = 0,
    level: float = 0.95,
    advance: Callable[[int, str], None] = lambda _rows, _note: None,
) -> tuple[Array, list[Importance]]:
    """Scores (N,) of the rows as they are, and the importance of every column of the log that
    ``inputs`` read, largest drop in AUC first.

    ``raw``: N rows as the graph takes them, ``labels`` (N,) in {0, 1}. All inputs that read one
    column move together, and nothing else does: a history moves without the items whose table it
    shares. ``advance``: told of rows scored. The result depends on the set of rows and on
    ``seed``, not on the order of rows, nor on which of the batch's columns ``inputs`` read. Memory:
    the rows, one batch, and R score columns.
    """
    order = _canonical(raw, labels)
    raw, target = _take(raw, torch.from_numpy(order)), np.asarray(labels)[order]
    count, parts = len(order), [*_slices(len(order))]

    def scored(place: _Place, donors: torch.Tensor, note: str) -> Array:
        out = np.empty(count, np.float32)
        for part in parts:
            out[part] = score(_lend(raw, part, donors[part], place))
            advance(part.stop - part.start, note)
        return out

    base = scored(_Place([], [], []), torch.arange(count), "as it is")
    found = []
    for column, place in _places(inputs).items():
        donors = [_permutation(count, column, seed, repeat) for repeat in range(repeats)]
        shuffled = [scored(place, torch.from_numpy(given), column) for given in donors]
        change = auc_mean_difference(target, base, shuffled, level)
        drop = Estimate(0.0 - change.value, 0.0 - change.high, 0.0 - change.low)  # never -0.0
        found.append(Importance(column, drop, _rise(target, base, shuffled, donors, level)))
    found.sort(key=lambda entry: (-entry.auc_drop.value, entry.column))
    scores = np.empty_like(base)
    scores[order] = base
    return scores, found


def importance_figure(found: Sequence[Importance], title: str) -> Figure:
    """Bars with intervals, most important on top: drop in AUC, rise in logloss."""
    shown = list(found[:_BARS])
    height = 1.5 + 0.3 * max(len(shown), 2)
    figure = Figure(figsize=(9.6, height), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(shown))
    sides: tuple[tuple[str, list[Estimate]], ...] = (
        ("Drop in AUC", [entry.auc_drop for entry in shown]),
        ("Rise in logloss (nats)", [entry.logloss_rise for entry in shown]),
    )
    for axes, (label, estimates) in zip(panels, sides, strict=True):
        value, low, high = np.array(estimates, dtype=np.float64).reshape(-1, 3).T
        sure = [
            _BLUE if bottom > 0 else _ORANGE if top < 0 else _GREY for _, bottom, top in estimates
        ]
        axes.barh(places, value, color=sure, alpha=0.75, height=0.7)
        reach = np.vstack([value - low, high - value])
        axes.errorbar(value, places, xerr=reach, fmt="none", ecolor="#222222", capsize=2.5, lw=1)
        axes.axvline(0.0, color=_GREY, linewidth=0.8)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(places, [entry.column for entry in shown])
    panels[0].invert_yaxis()  # both: the axis is shared
    more = f" (first {_BARS} of {len(found)})" if len(found) > _BARS else ""
    figure.suptitle(f"{title}{more}\ngrey: the 95 % interval covers 0")
    return figure


def _places(inputs: Sequence[InputField]) -> dict[str, _Place]:
    """Column of the log -> where it lies in a raw batch, in the order of the inputs."""
    places: dict[str, _Place] = {}
    counts = {"id": 0, "float": 0, "ids": 0}
    for item in inputs:
        place = places.setdefault(item.column, _Place([], [], []))
        {"id": place.ids, "float": place.floats, "ids": place.lists}[item.kind].append(
            counts[item.kind]
        )
        counts[item.kind] += 1
    return places


def _lend(raw: Batch, part: slice, donors: torch.Tensor, place: _Place) -> Batch:
    """Rows ``part`` of ``raw`` with one column's values taken from rows ``donors`` (b,)."""
    ids, floats, lengths = raw.ids[part], raw.floats[part], raw.lengths[part]
    lists = [values[part] for values in raw.lists]
    if place.ids:
        ids = ids.clone()
        ids[:, place.ids] = raw.ids[donors[:, None], place.ids]
    if place.floats:
        floats = floats.clone()
        floats[:, place.floats] = raw.floats[donors[:, None], place.floats]
    if place.lists:
        lengths = lengths.clone()
        lengths[:, place.lists] = raw.lengths[donors[:, None], place.lists]
        for f in place.lists:
            lists[f] = raw.lists[f][donors]
    return Batch(ids, floats, lists, lengths)


def _permutation(count: int, column: str, seed: int, repeat: int) -> Array:
    words = [seed, salt(column, repeat) & (2**63 - 1)]
    return np.random.default_rng(words).permutation(count)


def _canonical(raw: Batch, labels: Array) -> Array:
    """An order of the rows that is decided by what they hold, so that theirs does not matter."""
    key = splitmix64_np(np.asarray(labels).astype(np.int64))
    floats = torch.where(raw.floats.isnan(), torch.nan, raw.floats).numpy()  # one kind of NaN
    blocks = [raw.ids.numpy(), floats.view(np.int64), raw.lengths.numpy()]
    for block in [*blocks, *(values.numpy() for values in raw.lists)]:
        for column in range(block.shape[1]):
            key = splitmix64_np(key ^ block[:, column])
    return np.argsort(key, kind="stable")


def _take(raw: Batch, rows: torch.Tensor) -> Batch:
    lists = [values[rows] for values in raw.lists]
    return Batch(raw.ids[rows], raw.floats[rows], lists, raw.lengths[rows])


def _rise(
    labels: Array, base: Array, shuffled: Sequence[Array], donors: Sequence[Array], level: float
) -> Estimate:
    """Mean rise of the loss of a row, with a normal interval; row i got the values of row
    ``donors[r][i]`` in shuffle r."""
    before = _losses(labels, base)
    rise = np.zeros_like(before)  # of each row with the values of others
    given = np.zeros_like(before)  # of the rows that got its values
    for scores, owner in zip(shuffled, donors, strict=True):
        # Differences first: a column that changes no score then has a rise of exactly 0.
        change = (_losses(labels, scores) - before) / len(shuffled)
        rise += change
        given[owner] += change
    value, count, spread = float(rise.mean()), len(rise), rise + given
    error = float(spread.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    half = NormalDist().inv_cdf(0.5 + level / 2) * error
    return Estimate(value, value - half, value + half)


def _losses(labels: Array, scores: Array) -> Floats:
    p = np.clip(scores.astype(np.float64), CLIP, 1 - CLIP)
    losses: Floats = -np.where(labels == 1, np.log(p), np.log1p(-p))
    return losses


def _slices(count: int) -> Iterator[slice]:
    for first in range(0, count, BATCH_ROWS):
        yield slice(first, min(first + BATCH_ROWS, count))
