"""Runs side by side: metrics with confidence intervals, and AUC differences on the same rows."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Group
from rich.table import Table

from recsys.training import plots
from recsys.training.curves import curve
from recsys.training.group_significance import gauc_difference
from recsys.training.metrics import evaluate
from recsys.training.significance import auc_difference, auc_interval
from recsys.training.tracking.runs import RunReader, RunRecord
from serving.errors import InputError
from serving.paths import without_secrets

Result = dict[str, Any]

_COLUMNS = ("row", "label", "score")
_DRAWS = 2_000  # of users, for the interval of a GAUC difference


class Scored(NamedTuple):
    """What a run predicted: arrays (N,) sorted by the position of the row in its split. ``group``:
    ids of the column ``data.group``, None without one."""

    row: np.ndarray
    label: np.ndarray
    score: np.ndarray
    group: np.ndarray | None


def run(
    runs: Sequence[str] = (),
    *,
    uri: str,
    experiment: str | None = None,
    split: str = "test",
    out: Path | None = None,
) -> Result:
    """Compares ``runs`` (ids or names, the first is the reference; default: all with predictions).

    Returns ``{split, runs: [{run_id, name, model, embedding, auc, auc_low, auc_high, difference,
    difference_low, difference_high, p_value, gauc, gauc_difference, gauc_difference_low,
    gauc_difference_high, gauc_p_value, logloss, ne, stored_bytes, rows_per_second}], notes,
    plots}``, ``None`` where unknown. AUC, GAUC, logloss and NE are over the run's saved
    predictions, every row counting once; differences are against the first run and only between
    runs on the very same rows: same digest of the data, same positions, same labels, and for GAUC
    the same groups. ``out``: a folder for overlay plots. Nothing is logged. Raises `InputError` if
    there is nothing to compare.
    """
    if split not in ("valid", "test"):
        raise InputError(f"--split {split!r}: must be valid or test")
    reader = RunReader(uri)
    found = reader.find(runs, experiment=experiment)
    for record in found if runs else ():
        if record.tags.get("task") == "top_k":
            raise InputError(
                f"{_who(record)} ranks items and has no scores of rows to compare; recsys "
                "benchmark puts runs of its kind side by side"
            )
    with tempfile.TemporaryDirectory() as folder:
        scored = {
            record.run_id: _predictions(reader, record, split, Path(folder)) for record in found
        }
    if not runs:
        found = [record for record in found if scored[record.run_id] is not None]
    if not found:
        raise InputError(
            f"no run in {without_secrets(uri)} has predictions on {split!r}; train one first"
        )
    first, notes = found[0], []
    rows = []
    for record in found:
        row, note = _row(record, scored, first, split)
        rows.append(row)
        notes += note
    result = {"split": split, "runs": rows, "notes": notes, "plots": []}
    if out is not None:
        result["plots"] = _plots(found, scored, split, out)
    return result


def render(result: Result) -> Group:
    """The comparison as a table for the terminal, notes below it."""
    table = Table(title=f"{result['split']} split, differences to the first run", title_style="")
    grouped = any(row["gauc"] is not None for row in result["runs"])
    for name in ("run", "model", "table"):
        table.add_column(name)
    ranked = ("GAUC", "difference [95% CI]", "p") if grouped else ()
    metrics = ("AUC [95% CI]", "difference [95% CI]", "p", *ranked, "logloss", "NE")
    for name in (*metrics, "bytes", "rows/s"):
        table.add_column(name, justify="right")
    for row in result["runs"]:
        low, high = row["gauc_difference_low"], row["gauc_difference_high"]
        of_groups = (
            _number(row["gauc"], ".5f"),
            _interval(row["gauc_difference"], low, high, "+.5f"),
            _number(row["gauc_p_value"], ".2g"),
        )
        table.add_row(
            f"{row['name']} ({row['run_id'][:8]})",
            row["model"] or "-",
            row["embedding"] or "-",
            _interval(row["auc"], row["auc_low"], row["auc_high"], ".5f"),
            _interval(row["difference"], row["difference_low"], row["difference_high"], "+.5f"),
            _number(row["p_value"], ".2g"),
            *(of_groups if grouped else ()),
            _number(row["logloss"], ".5f"),
            _number(row["ne"], ".4f"),
            _number(row["stored_bytes"], ",.0f"),
            _number(row["rows_per_second"], ",.0f"),
        )
    return Group(table, *(f"note: {note}" for note in result["notes"]), *result["plots"])


def _row(
    record: RunRecord, scored: dict[str, Scored | None], first: RunRecord, split: str
) -> tuple[Result, list[str]]:
    own, reference = scored[record.run_id], scored[first.run_id]
    values: dict[str, float] = {
        name: record.metrics.get(f"final/{split}/{name}", math.nan)
        for name in ("auc", "gauc", "logloss", "ne")
    }
    notes = []
    if own is None:
        notes.append(f"{_who(record)} saved no predictions on {split}: no interval, no difference")
    else:
        values |= evaluate(own.label, own.score, groups=own.group)
        if "weight" in record.tags:
            column = record.tags["weight"]
            notes.append(f"{_who(record)} weighs rows by {column!r}; here every row counts once")
        _, values["auc_low"], values["auc_high"] = auc_interval(own.label, own.score)
        if record is not first and reference is not None:
            reason = _different(record, first, own, reference, split)
            if reason:
                notes.append(
                    f"{_who(record)} was evaluated on other rows than {_who(first)} ({reason}): "
                    "no difference"
                )
            else:
                found = auc_difference(own.label, reference.score, own.score)
                values["difference"], values["p_value"] = found.value, found.p_value
                values["difference_low"], values["difference_high"] = found.low, found.high
                values |= _of_groups(own, reference)
                if own.group is not None and "gauc_difference" not in values:
                    notes.append(
                        f"{_who(record)} groups rows otherwise than {_who(first)}: no GAUC "
                        "difference"
                    )
    values["stored_bytes"] = record.metrics.get("memory/stored_bytes", math.nan)
    values["rows_per_second"] = record.metrics.get("train/rows_per_second", math.nan)
    names = (
        *("auc", "auc_low", "auc_high", "difference", "difference_low", "difference_high"),
        *("p_value", "gauc", "gauc_difference", "gauc_difference_low", "gauc_difference_high"),
        *("gauc_p_value", "logloss", "ne", "stored_bytes", "rows_per_second"),
    )
    row = {
        "run_id": record.run_id,
        "name": record.name,
        "model": record.tags.get("model"),
        "embedding": record.tags.get("embedding"),
        **{name: _finite(values.get(name, math.nan)) for name in names},
    }
    return row, notes


def _of_groups(own: Scored, reference: Scored) -> dict[str, float]:
    """The GAUC difference of two runs on the same rows; empty unless they have the same groups."""
    if own.group is None or reference.group is None:
        return {}
    if not (own.group == reference.group).all():
        return {}
    scores = [reference.score], [own.score]
    found = gauc_difference(own.label, *scores, own.group, samples=_DRAWS)
    names = ("difference", "difference_low", "difference_high", "p_value")
    return {f"gauc_{name}": value for name, value in zip(names, found, strict=True)}


def _different(
    record: RunRecord, first: RunRecord, own: Scored, reference: Scored, split: str
) -> str:
    """Why two runs did not score the same rows; empty if they did."""
    digest, expected = record.digests.get(split), first.digests.get(split)
    if digest is None or expected is None:
        return "the digest of the data was not logged"
    if digest != expected:
        return f"digest {digest[:12]} against {expected[:12]}"
    if len(own.row) != len(reference.row):
        return f"{len(own.row):,} rows against {len(reference.row):,}"
    if not (own.row == reference.row).all() or not (own.label == reference.label).all():
        return "positions or labels differ"
    return ""


def _predictions(reader: RunReader, record: RunRecord, split: str, folder: Path) -> Scored | None:
    path = f"predictions/{split}.parquet"
    into = folder / record.run_id
    into.mkdir(exist_ok=True)
    file = reader.fetch(record.run_id, path, into)
    if file is None:
        return None
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{path} of {_who(record)} is unreadable: {str(error).splitlines()[0]}"
        ) from error
    if not set(_COLUMNS) <= set(table.column_names):
        raise InputError(f"{path} of {_who(record)} lacks one of the columns {', '.join(_COLUMNS)}")
    row, label, score = (table[name].to_numpy() for name in _COLUMNS)
    order = np.argsort(row, kind="stable")
    group = table["group"].to_numpy()[order] if "group" in table.column_names else None
    return Scored(row[order], label[order], score[order], group)


def _plots(
    found: Sequence[RunRecord], scored: dict[str, Scored | None], split: str, out: Path
) -> list[str]:
    curves = {}
    for record in found:
        own = scored[record.run_id]
        if own is not None:
            twice = sum(other.name == record.name for other in found) > 1
            name = f"{record.name} ({record.run_id[:8]})" if twice else record.name
            curves[name] = curve(own.label, own.score)
    if not curves:
        return []
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, draw in (("roc", plots.roc), ("pr", plots.pr), ("reliability", plots.reliability)):
        path = out / f"{re.sub(r'[^A-Za-z0-9_-]', '_', split)}_{kind}.png"
        draw(curves, f"{split} split").savefig(path, dpi=150)
        written.append(str(path))
    return written


def _who(record: RunRecord) -> str:
    return f"{record.name} ({record.run_id[:8]})"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _interval(value: float | None, low: float | None, high: float | None, form: str) -> str:
    if value is None or low is None or high is None:
        return _number(value, form)
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
