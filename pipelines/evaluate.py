"""Metrics of a bundle on raw rows: the same functions that judge a live model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Group
from rich.table import Table

from pipelines import evaluate_ranking
from recsys.bundle.rebuild import config_tree
from recsys.config import parse_click_config
from recsys.data import Source, open_source, splits
from recsys.data.targets import groups, labels, target_columns, weights
from recsys.settings import DataConfig
from recsys.training.metrics import slices as sliced
from recsys.training.prediction import Predictions
from recsys.training.progress import Reporter, SilentReporter
from recsys.types import InputError
from serving.bundle import Bundle, open_bundle
from serving.scorer import Scorer
from serving.topk import TopK

BATCH_ROWS = 8192
Result = dict[str, Any]


def run(
    bundle: Path,
    *,
    data: Sequence[str] | None = None,
    split: str = "test",
    root: str = ".",
    slices: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Result:
    """Scores raw rows of ``data``, or of ``split`` of the run's own data, and measures.

    Returns ``{run_id, bundle, metrics: {split: ...}, memory, seconds, rows_per_second}`` and, for
    each column of ``slices``, the metrics by value. ``slices`` are for bundles of click models.
    """
    started = time.perf_counter()
    reporter = reporter or SilentReporter()
    opened = open_bundle(bundle)
    slices = list(dict.fromkeys(slices))
    by_value: dict[str, list[dict[str, Any]]] = {}
    if opened.task == TopK.task:
        if slices:
            raise InputError(
                f"--slice {slices[0]}: {bundle} recommends items; slices are of click models"
            )
        metrics = evaluate_ranking.measure(opened, data, split, root, reporter)
    else:
        predictions, columns = _clicks(opened, data, split, root, slices, reporter)
        metrics = predictions.metrics()
        by_value = {
            column: sliced(
                predictions.labels, predictions.scores, values, weights=predictions.weights
            ).to_pylist()
            for column, values in columns.items()
        }
    seconds = time.perf_counter() - started
    return {
        "run_id": opened.manifest.get("run_id"),
        "bundle": str(bundle),
        "metrics": {"data" if data else split: metrics},
        "memory": opened.manifest.get("memory"),
        "slices": by_value,
        "seconds": seconds,
        "rows_per_second": metrics["rows"] / seconds,
    }


def split_of(bundle: Bundle, config: DataConfig, split: str, root: str) -> Source:
    """A split of a run's own data. Errors: `InputError` for one that there is not, and for a log
    that has changed: another split of it might be of rows that the bundle was trained on."""
    if split not in ("train", "valid", "test"):
        raise InputError(f"--split {split!r}: must be train, valid or test")
    source = getattr(splits(config, root), split)
    if source is None:
        raise InputError(f"--split {split}: the run has no such split; give --data instead")
    known = bundle.manifest.get("log")
    if config.split is not None and known not in (None, source.content):
        raise InputError(
            f"--split {split}: the log in {os.path.dirname(source.files[0])} has changed since the "
            "bundle was trained, so that this split of it may hold rows that were trained on; "
            "evaluate --data of rows that are new, or put the log back as it was"
        )
    return source


def _clicks(
    bundle: Bundle,
    data: Sequence[str] | None,
    split: str,
    root: str,
    slices: Sequence[str],
    reporter: Reporter,
) -> tuple[Predictions, dict[str, pa.ChunkedArray]]:
    config = parse_click_config(config_tree(bundle), where=f"config in {bundle.path}").data
    scorer = Scorer(bundle)
    if data:
        source = open_source(list(data), root=root, text=scorer.text)
    else:
        source = split_of(bundle, config, split, root)
    scorer.check(source.schema, str(source.files[0]))
    for name in slices:
        place = source.schema.get_field_index(name)
        if place >= 0 and pa.types.is_nested(source.schema.field(place).type):
            kind = source.schema.field(place).type
            raise InputError(f"--slice {name}: a slice needs one value a row, not {kind}")
    return judged(source, config, scorer.columns, scorer.predict, slices, reporter)


def judged(
    source: Source,
    config: DataConfig,
    columns: Sequence[str],
    predict: Callable[[pa.RecordBatch], np.ndarray],
    slices: Sequence[str],
    reporter: Reporter,
) -> tuple[Predictions, dict[str, pa.ChunkedArray]]:
    """Scores of all rows of ``source`` by ``predict``, which gets their ``columns``, beside what
    they are judged by; and the columns of ``slices``. Errors: `InputError` for no rows."""
    wanted = list(dict.fromkeys([*columns, *target_columns(config), *slices]))
    parts: list[tuple[np.ndarray, ...]] = []
    kept: list[pa.RecordBatch] = []
    first = 0
    with reporter.bar("score", source.num_rows) as bar:
        for rows in source.batches(wanted, BATCH_ROWS):
            scores = predict(rows.select(list(columns)))
            label = labels(rows, config, source, first)
            weight = weights(rows, config, source, first)
            parts.append((scores, label, weight, groups(rows, config)))
            kept.append(rows.select(list(slices)))
            first += rows.num_rows
            bar.advance(rows.num_rows)
    if not parts:
        raise InputError(f"{source.files[0]}: has no rows; nothing can be measured")
    table = pa.Table.from_batches(kept)
    return (
        Predictions(*(np.concatenate(column) for column in zip(*parts, strict=True))),
        {column: table[column] for column in slices},
    )


def render(result: Result) -> Group:
    """One table of metrics, one per sliced column."""
    tables = []
    for split, metrics in result["metrics"].items():
        table = Table("metric", title=split)
        table.add_column("value", justify="right")
        for key, value in metrics.items():
            table.add_row(key, _text(key, value))
        tables.append(table)
    for column, rows in result["slices"].items():
        table = Table(title=f"by {column}")
        for key in rows[0]:
            table.add_column(key, justify="left" if key == "value" else "right")
        for row in rows:
            table.add_row(*(_text(key, value) for key, value in row.items()))
        tables.append(table)
    return Group(*tables)


def _text(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if key == "rows" else f"{value:.5f}"
