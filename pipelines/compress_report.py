"""The table and the picture of a Pareto: a metric against the bytes of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from pipelines.benchmark_report import Columns
from recsys.training import plots

Result = dict[str, Any]


def markdown(
    rows: Sequence[Result],
    infeasible: Sequence[Result],
    columns: Columns,
    command: str,
    bayes: float | None = None,
) -> str:
    """One block of lines per budget, the best method first, and what is out of reach."""
    first, second = columns.titles
    head = (
        f"| budget | method | seeds | test {first} | {second} | stored bytes | training bytes "
        "| lookups | seconds |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for budget in dict.fromkeys(row["budget"] for row in rows):
        for row in _ranked(rows, budget, columns.first):
            cells = [
                str(budget),
                f"`{row['method']}`",
                str(len(row["seeds"])),
                _spread(row, columns.first),
                _spread(row, columns.second),
                f"{row['stored_bytes']:,}",
                f"{row['training_bytes']:,}",
                str(row["lookups_per_row"]),
                f"{row['seconds']:.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    notes = ["", "Mean ± standard deviation over the seeds; `full` is the plain table whose"]
    notes += ["width fits, the baseline at its budget."]
    if bayes is not None:
        notes += [f"The best possible {first} is {bayes:.5f}."]
    if infeasible:
        notes += ["", "Out of reach:", "", *_left_out(infeasible)]
    made = [f"    {command}", ""] if command else []
    return "\n".join([*made, *lines, *notes])


def _left_out(infeasible: Sequence[Result]) -> list[str]:
    """One line per budget with the floors of those that need more, and one for any other reason."""
    floors: dict[str | float, list[str]] = {}
    others = []
    for row in infeasible:
        if row["floor"] is None:
            others.append(f"- `{row['method']}` at {row['budget']}: {row['reason']}")
        else:
            needs = f"`{row['method']}` needs {row['floor']}"
            floors.setdefault(row["budget"], []).append(needs)
    return [f"- at {budget}: {', '.join(needs)}" for budget, needs in floors.items()] + others


def pareto(rows: Sequence[Result], columns: Columns, title: str, bayes: float | None) -> Figure:
    """Both metrics against stored bytes, one line per method, `full` dashed."""
    lines: dict[str, list[tuple[int, Sequence[float], Sequence[float]]]] = {}
    for row in sorted(rows, key=lambda row: row["stored_bytes"]):
        metrics = (row[f"{columns.first}_values"], row[f"{columns.second}_values"])
        lines.setdefault(row["method"], []).append((row["stored_bytes"], *metrics))
    return plots.pareto(lines, columns.titles, title, baseline="full", best=bayes)


def render(result: Result) -> Table:
    """One line per budget and method, the best method first."""
    names = result["metrics"]
    table = Table()
    titles = ("budget", "method", "seeds", *names["titles"], "bytes", "training", "seconds")
    for title in titles:
        table.add_column(title, justify="left" if title == "method" else "right")
    rows = result["rows"]
    for budget in dict.fromkeys(row["budget"] for row in rows):
        for row in _ranked(rows, budget, names["first"]):
            table.add_row(
                str(budget),
                row["method"],
                str(len(row["seeds"])),
                _spread(row, names["first"]),
                _spread(row, names["second"]),
                f"{row['stored_bytes']:,}",
                f"{row['training_bytes']:,}",
                f"{row['seconds']:.0f}",
            )
        table.add_section()
    left_out = [f"{r['method']} at {r['budget']}: {r['reason']}" for r in result["infeasible"]]
    notes = [f"failed: {line}" for line in result["failed"]]
    notes += [f"left out: {line}" for line in left_out]
    if notes:
        table.caption = "\n".join(notes)
        table.caption_justify = "left"
    return table


def _ranked(rows: Sequence[Result], budget: str | float, metric: str) -> list[Result]:
    return sorted((r for r in rows if r["budget"] == budget), key=lambda r: -float(r[metric]))


def _spread(row: Result, metric: str) -> str:
    sd = row[f"{metric}_sd"]
    return f"{row[metric]:.5f}" + ("" if sd is None else f" ± {sd:.5f}")
