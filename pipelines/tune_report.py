"""What a search for settings shows: a table of its trials, and two pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipelines.tune_space import Range, Space

Result = dict[str, Any]

_COLORS = {"complete": "#1f6fb4", "cut": "#8c8c8c"}
_BEST = "#d1603d"


def markdown(result: Result) -> str:
    """The trials, the best first, as Markdown."""
    head = _head(result)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(_cells(record, result))} |" for record in _ranked(result)]
    return "\n".join(lines)


def render(result: Result) -> Group:
    """The trials, the best first, and what to do next."""
    table = Table(title=f"{len(result['trials'])} trials by valid {result['monitor']}")
    for name in _head(result):
        table.add_column(name, justify="right")
    for record in _ranked(result):
        table.add_row(*map(Text, _cells(record, result)))
    best = result["best"]
    failed = {r["reason"]: r["trial"] for r in reversed(result["trials"]) if "reason" in r}
    lines = [f"trial {number} failed: {reason}" for reason, number in failed.items()]
    if best["trial"] == 1:
        lines.append("nothing was better than the first trial")
    lines.append(f"train the best: recsys train {best['config']}")
    return Group(table, *map(Text, lines))


def figures(result: Result, space: Space) -> dict[str, Figure]:
    """``trials``: values in the order they were found; ``settings``: values by each key."""
    records = [record for record in result["trials"] if record["value"] is not None]
    return {"trials": _trials(records, result), "settings": _settings(records, result, space)}


def _trials(records: Sequence[Result], result: Result) -> Figure:
    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    axes = figure.subplots()
    _dots(axes, [(record["trial"], record) for record in records])
    complete = [record for record in records if record["state"] == "complete"]
    so_far = np.minimum if result["lower"] else np.maximum
    best = so_far.accumulate([record["value"] for record in complete])
    places = [record["trial"] for record in complete]
    axes.step(places, best, where="post", color=_BEST, label="best so far")
    axes.set(xlabel="trial", ylabel=f"valid {result['monitor']}")
    axes.legend(frameon=False)
    return figure


def _settings(records: Sequence[Result], result: Result, space: Space) -> Figure:
    count = len(space.domains)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (key, domain) in zip(grid, space.domains.items(), strict=False):
        if isinstance(domain, Range):
            _dots(axes, [(record["values"][key], record) for record in records])
            if domain.log:
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
            elif domain.whole:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            labels = [json.dumps(value) for value in domain]
            _dots(axes, [(labels.index(record["params"][key]), record) for record in records])
            short = [label if len(label) < 18 else f"{label[:16]}..." for label in labels]
            axes.set_xticks(range(len(labels)), short, rotation=20)
        axes.set(xlabel=key)
    grid[0].legend(frameon=False, fontsize="small")
    for axes in grid[::columns]:
        axes.set(ylabel=f"valid {result['monitor']}")
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure


def _dots(axes: Axes, points: Sequence[tuple[float, Result]]) -> None:
    for state, color in _COLORS.items():
        mine = [(x, record["value"]) for x, record in points if record["state"] == state]
        if mine:
            axes.plot(*zip(*mine, strict=True), "o", color=color, markersize=4, label=state)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _ranked(result: Result) -> list[Result]:
    """Complete trials, the best first, then those that were cut, then those that failed."""
    order = ("complete", "cut", "failed")
    sign = 1 if result["lower"] else -1

    def place(record: Result) -> tuple[int, float, int]:
        value = 0.0 if record["value"] is None else sign * record["value"]
        return order.index(record["state"]), value, record["trial"]

    return sorted(result["trials"], key=place)


def _head(result: Result) -> list[str]:
    return ["trial", result["monitor"], "epochs", "table bytes", "seconds", *result["keys"]]


def _cells(record: Result, result: Result) -> list[str]:
    values: Mapping[str, Any] = record["values"]
    shown = [_plain(values[key]) for key in result["keys"]]
    if record["state"] == "failed":
        return [str(record["trial"]), "failed", "", "", "", *shown]
    cut = " (cut)" if record["state"] == "cut" else ""
    return [
        str(record["trial"]),
        f"{record['value']:.5f}",
        f"{len(record['by_epoch'])}{cut}",
        f"{record['stored_bytes']:,}",
        f"{record['seconds']:.0f}",
        *shown,
    ]


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value).replace('"', "")
