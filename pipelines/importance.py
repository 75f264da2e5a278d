"""Permutation importance of a bundle's columns, from raw rows: any model, nothing is rebuilt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Group
from rich.table import Table

from pipelines.sample import files_by_suffix, run_of, save_figure, spread_rows
from recsys.config import RunConfig, parse_click_config
from recsys.data.targets import labels
from recsys.training import importance
from recsys.training.importance import Estimate, permutation_importance
from recsys.training.metrics import auc, logloss
from recsys.training.progress import Reporter, SilentReporter
from recsys.types import InputError
from serving.bundle import open_bundle
from serving.parquet import Source, open_source
from serving.scorer import Scorer

Result = dict[str, Any]

INTERVAL = "95 %: DeLong for AUC, normal for logloss"


def run(
    bundle: Path,
    data: str | Sequence[str],
    *,
    root: str = ".",
    rows: int = 20_000,
    repeats: int = 5,
    seed: int = 0,
    out: Sequence[Path] = (),
    uri: str | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """What shuffling each column costs on ``rows`` labelled raw rows, evenly spread over ``data``.

    Each column is shuffled ``repeats`` times: see `recsys.training.importance` for what moves
    together and what the intervals mean. ``out``: a ``.png`` for the bars. ``uri``: the store
    where the picture joins the bundle's run.

    Returns ``{run_id, bundle, rows, repeats, seed, interval, auc, logloss, columns, out, seconds}``
    with one entry ``{column, features, auc_drop, auc_drop_low, auc_drop_high, logloss_rise,
    logloss_rise_low, logloss_rise_high}`` per column, largest drop first. Raises `InputError`
    unless there are two rows of each label.
    """
    started = time.perf_counter()
    files = files_by_suffix(out, (".png",))
    opened = open_bundle(bundle)
    run_record = run_of(opened, uri)
    config = parse_click_config(opened.manifest.get("config", {}), where=f"config in {bundle}")
    scorer = Scorer(opened)
    source = open_source(data, root, text=scorer.text)
    scorer.check(source.schema, str(source.files[0]))
    table, target = _sample(source, scorer.columns, config, rows)
    work = len(table) * (1 + repeats * len(scorer.columns))
    with (reporter or SilentReporter()).bar("shuffle", work) as bar:
        scores, found = permutation_importance(
            scorer.score,
            scorer.encode(table),
            target,
            scorer.inputs,
            repeats=repeats,
            seed=seed,
            advance=bar.advance,
        )
    title = f"{opened.manifest.get('name', bundle.name)}: {len(table):,} rows of {source.files[0]}"
    figure = importance.importance_figure(found, title)
    if ".png" in files:
        save_figure(figure, files[".png"])
    run_record.log_figure(figure, importance.PICTURE)
    return {
        "run_id": opened.manifest.get("run_id"),
        "bundle": str(bundle),
        "rows": len(table),
        "repeats": repeats,
        "seed": seed,
        "interval": INTERVAL,
        "auc": auc(target, scores),
        "logloss": logloss(target, scores),
        "columns": [
            {
                "column": entry.column,
                "features": _features_of(config, entry.column),
                **_named("auc_drop", entry.auc_drop),
                **_named("logloss_rise", entry.logloss_rise),
            }
            for entry in found
        ],
        "out": [str(path) for path in files.values()],
        "seconds": time.perf_counter() - started,
    }


def render(result: Result) -> Group:
    """Columns by the drop in AUC, with intervals."""
    table = Table(
        title=f"{result['rows']:,} rows, AUC {result['auc']:.5f}, logloss {result['logloss']:.5f}"
    )
    table.add_column("column shuffled")
    for name in ("drop in AUC [95% CI]", "rise in logloss [95% CI]"):
        table.add_column(name, justify="right")
    for row in result["columns"]:
        table.add_row(row["column"], _interval(row, "auc_drop"), _interval(row, "logloss_rise"))
    notes = [f"{result['repeats']} shuffles of each column; intervals {result['interval']}"]
    notes += [f"written: {path}" for path in result["out"]]
    return Group(table, *notes)


def _sample(
    source: Source, columns: Sequence[str], config: RunConfig, count: int
) -> tuple[pa.Table, np.ndarray]:
    """Rows (N) and their labels (N,), which are checked."""
    wanted = list(dict.fromkeys([*columns, config.data.label]))
    batches, target = [], []
    for first, batch, picks in spread_rows(source, wanted, count):
        batches.append(batch.take(pa.array(picks)))
        target.append(labels(batch, config.data, source, first)[picks])
    found = np.concatenate(target)
    positive = int(found.sum())
    if min(positive, len(found) - positive) < 2:
        raise InputError(
            f"{source.files[0]}: {positive} of {len(found)} rows have label 1; a drop in AUC needs "
            "two rows of each label"
        )
    return pa.Table.from_batches(batches), found


def _features_of(config: RunConfig, column: str) -> list[str]:
    named = config.features.items()
    return [name for name, feature in named if feature.source_column(name) == column]


def _named(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _interval(row: Result, name: str) -> str:
    return f"{row[name]:+.5f} [{row[f'{name}_low']:+.5f}, {row[f'{name}_high']:+.5f}]"
