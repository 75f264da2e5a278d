"""From the records of a run to medians, ratios, goals and a table. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

OURS = "recsys"
RIVAL = "fuxictr"
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """``figure`` of ours, best of ``systems``, against the rival's must reach ``ratio``."""

    stage: str
    figure: str
    ratio: float
    ids_from: int = 0
    ids_below: int = 1 << 62


GOALS = (
    Goal("ingest", "speed", 10.0),
    Goal("ingest", "memory", 3.0),
    Goal("train", "speed", 2.0, ids_below=1_000_000),
    Goal("train", "speed", 3.0, ids_from=1_000_000),
    Goal("predict", "speed", 3.0),
)


def summarise(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One line per data set, stage and system, in the order of first appearance: times from the
    turns that took the time, peak memory from those that were watched for it.

    ``speed``: rows/s over recsys's (fp32), ``memory``: peak bytes over recsys's; both 1.0 for
    recsys itself, ``None`` where either side failed.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if "system" in record:
            key = (record["dataset"], record["stage"], record["system"])
            groups.setdefault(key, []).append(record)
    lines = []
    for (dataset, stage, system), turns in groups.items():
        good = [turn for turn in turns if "failed" not in turn]
        line: dict[str, Any] = {"dataset": dataset, "stage": stage, "system": system}
        timed = [turn for turn in good if "seconds" in turn]
        line["turns"], line["failed"] = len(timed), len(turns) - len(good)
        watched = [turn["tree_peak_bytes"] for turn in good if "tree_peak_bytes" in turn]
        if timed and watched:
            seconds = [turn["seconds"] for turn in timed]
            line |= {
                "seconds": median(seconds),
                "fastest": min(seconds),
                "slowest": max(seconds),
                "rows_per_second": median(turn["rows_per_second"] for turn in timed),
                "peak_bytes": median(watched),
            }
            line |= {key: good[-1][key] for key in ("loss", "parameters", "ids") if key in good[-1]}
        lines.append(line)
    for line in lines:
        ours = _find(lines, line["dataset"], line["stage"], OURS)
        known = ours is not None and "seconds" in line and "seconds" in ours
        line["speed"] = line["rows_per_second"] / ours["rows_per_second"] if known else None
        line["memory"] = line["peak_bytes"] / ours["peak_bytes"] if known else None
    return lines


def goals(summary: Sequence[Record]) -> list[dict[str, Any]]:
    """Every goal on every data set it is about: the ratio wanted and the ratio measured.

    A speed ratio is ours over the rival's, a memory ratio the rival's over ours: above 1 is good.
    """
    lines = []
    for dataset in dict.fromkeys(line["dataset"] for line in summary):
        ids = int(dataset.split("-")[2])
        for goal in GOALS:
            rival = _find(summary, dataset, goal.stage, RIVAL)
            if not goal.ids_from <= ids < goal.ids_below or rival is None:
                continue
            if rival["speed"] is None:
                continue
            measured = 1 / rival["speed"] if goal.figure == "speed" else rival["memory"]
            lines.append(
                {
                    "dataset": dataset,
                    "stage": goal.stage,
                    "figure": goal.figure,
                    "wanted": goal.ratio,
                    "measured": round(measured, 2),
                    "met": measured >= goal.ratio,
                }
            )
    return lines


def render(summary: Sequence[Record], reached: Sequence[Record]) -> str:
    """The table, and under it the goals."""
    head = ("system", "seconds", "min-max", "rows/s", "peak MB", "speed", "memory", "loss")
    parts = []
    for dataset in dict.fromkeys(line["dataset"] for line in summary):
        for stage in dict.fromkeys(line["stage"] for line in summary):
            lines = [x for x in summary if x["dataset"] == dataset and x["stage"] == stage]
            if lines:
                parts.append(f"\n{dataset}: {stage}\n" + _table([head, *map(_cells, lines)]))
    if reached:
        parts.append(f"\nrecsys against {RIVAL}")
        for goal in reached:
            word = "met" if goal["met"] else "MISSED"
            parts.append(
                f"  {goal['dataset']} {goal['stage']} {goal['figure']}: "
                f"{goal['measured']:.1f}x, wanted {goal['wanted']:g}x: {word}"
            )
    parts.append(f"\nspeed and memory are relative to {OURS} in fp32.")
    return "\n".join(parts)


def _find(lines: Sequence[Any], dataset: str, stage: str, system: str) -> Any:
    wanted = (dataset, stage, system)
    return next((x for x in lines if (x["dataset"], x["stage"], x["system"]) == wanted), None)


def _cells(line: Record) -> tuple[str, ...]:
    if "seconds" not in line:
        return (line["system"], "failed", *[""] * 6)
    return (
        line["system"],
        f"{line['seconds']:.2f}",
        f"{line['fastest']:.2f}-{line['slowest']:.2f}",
        f"{line['rows_per_second']:,.0f}",
        f"{line['peak_bytes'] / 1e6:,.0f}",
        "" if line["speed"] is None else f"{line['speed']:.2f}x",
        "" if line["memory"] is None else f"{line['memory']:.2f}x",
        f"{line['loss']:.4f}" if "loss" in line else "",
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
