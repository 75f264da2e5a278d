"""The table of a benchmark: one row per config, as Markdown and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from recsys.disk import write_whole
from serving.errors import InputError

Result = dict[str, Any]

BEGIN, END = "<!-- recsys benchmark -->", "<!-- end of recsys benchmark -->"


class Columns(NamedTuple):
    """The two test metrics of a table, the first one compared with the published value.

    ``titles``: how they are written; ``more``: metrics of a row that the table does not show.
    """

    first: str
    second: str
    titles: tuple[str, str]
    more: tuple[str, ...] = ()


CLICKS = Columns("auc", "logloss", ("AUC", "logloss"), ("gauc",))


def ranking_columns(k: int) -> Columns:
    """Of models that rank items."""
    return Columns(f"ndcg@{k}", f"recall@{k}", (f"NDCG@{k}", f"Recall@{k}"), ("mrr",))


def summary(
    label: str, done: Mapping[int, Result], published: Mapping[str, Any], columns: Columns = CLICKS
) -> Result:
    """Mean, standard deviation and values of test metrics over ``done``, the results by seed."""
    row: Result = {"config": label, "seeds": sorted(done)}
    for metric in (columns.first, *columns.more, columns.second):
        values = [result["metrics"]["test"].get(metric) for result in done.values()]
        if None in values:
            continue
        row[metric] = float(np.mean(values))
        row[f"{metric}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        row[f"{metric}_values"] = values
    return row | {
        f"published_{columns.first}": published.get(columns.first),
        f"published_{columns.second}": published.get(columns.second),
        "source": published.get("source"),
        # Selection keeps another number of rows with every seed.
        "parameters": round(np.mean([r["parameters"] for r in done.values()])),
        "stored_bytes": round(np.mean([r["memory"]["stored_bytes"] for r in done.values()])),
        **{
            key: float(np.mean([result[key] for result in done.values()]))
            for key in ("epochs", "seconds", "rows_per_second")
        },
    }


def markdown(rows: Sequence[Result], command: str, columns: Columns = CLICKS) -> str:
    """The table, under the command that made it."""
    first, second = columns.titles
    head = (
        f"| config | seeds | test {first} | published | difference | {second} | published "
        "| parameters | table bytes | epochs | seconds |"
    )
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for row in rows:
        paper, other = (row[f"published_{key}"] for key in (columns.first, columns.second))
        cells = [
            f"`{row['config']}`",
            str(len(row["seeds"])),
            _spread(row, columns.first),
            "" if paper is None else f"{paper:.4f}",
            "" if paper is None else f"{row[columns.first] - paper:+.4f}",
            _spread(row, columns.second),
            "" if other is None else f"{other:.4f}",
            f"{row['parameters']:,}",
            f"{row['stored_bytes']:,}",
            f"{row['epochs']:.0f}",
            f"{row['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    sources = sorted({row["source"] for row in rows if row["source"]})
    notes = [f"Published: {'; '.join(sources)}."] if sources else []
    made = [f"    {command}", ""] if command else []
    return "\n".join([*made, *lines, "", "Mean ± standard deviation over the seeds.", *notes])


def _spread(row: Result, metric: str) -> str:
    sd = row[f"{metric}_sd"]
    return f"{row[metric]:.5f}" + ("" if sd is None else f" ± {sd:.5f}")


def read_report(report: Path) -> tuple[str, str]:
    """What stands before and after the table of a page; nothing for a new page."""
    if not report.exists():
        return "", "\n"
    old = report.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        raise InputError(f"report {report}: has no lines {BEGIN} and {END}; choose another")
    return old[: old.index(BEGIN)], old[old.index(END) + len(END) :]


def write_report(report: Path, table: str) -> None:
    """Writes ``table`` to a page of its own, or in place of the last one in an existing page."""
    before, after = read_report(report)
    write_whole(report, f"{before}{BEGIN}\n{table}\n{END}{after}")


def render(result: Result) -> Table:
    """One line per config."""
    columns = Columns(**result["metrics"])
    table = Table()
    first, second = columns.titles
    for title in ("config", "seeds", f"test {first}", "published", second, "bytes", "seconds"):
        table.add_column(title, justify="left" if title == "config" else "right")
    for row in result["rows"]:
        value, paper = row[columns.first], row[f"published_{columns.first}"]
        table.add_row(
            row["config"],
            str(len(row["seeds"])),
            _spread(row, columns.first),
            "" if paper is None else f"{paper:.4f} ({value - paper:+.4f})",
            _spread(row, columns.second),
            f"{row['stored_bytes']:,}",
            f"{row['seconds']:.0f}",
        )
    if result["failed"]:
        table.caption = "failed:\n" + "\n".join(result["failed"])
    return table
