"""Configs x seeds: one table of test metrics with their spread, beside published values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipelines.benchmark_report import (
    Columns,
    markdown,
    read_report,
    render,
    summary,
    write_report,
)
from pipelines.grid import Grid, Job, columns_of, data_digest, needs_test
from recsys.config import AnyRunConfig, load_config
from recsys.training import plots
from recsys.training.progress import Reporter, SilentReporter
from serving.errors import InputError

Result = dict[str, Any]

__all__ = ["render", "run"]


def run(
    configs: Sequence[Path],
    *,
    seeds: int = 3,
    overrides: Sequence[str] = (),
    published: Path | None = None,
    root: str = ".",
    out: Path = Path("runs"),
    cache: Path | None = None,
    workers: int = 1,
    report: Path | None = None,
    command: str = "",
    reporter: Reporter | None = None,
) -> Result:
    """Runs every config with ``seeds`` seeds (its own and the following) and summarises them.

    Returns ``{rows: [{config, seeds, auc, auc_sd, logloss, logloss_sd, published_auc,
    published_logloss, source, parameters, stored_bytes, epochs, seconds, rows_per_second}],
    failed: [...], metrics, markdown}``: means over the seeds; each metric also has its
    ``METRIC_values``, and a log with groups has ``gauc``. Where models rank items, ``ndcg@10`` and
    ``recall@10`` take the places of ``auc`` and ``logloss`` (see `benchmark_report.Columns`).
    Finished runs are kept in ``out/benchmark`` and not repeated; see `pipelines.grid.Grid`.
    ``published``: YAML of ``config: {METRIC: value, source: text}``. ``report``: Markdown file to
    write; where it exists, only the part between its two `recsys benchmark` comments is replaced.

    Errors: `InputError` for configs that do not load, before anything runs.
    """
    reporter = reporter or SilentReporter()
    loaded = _load(configs, overrides)
    columns = columns_of(loaded)
    known = _published(published, columns, loaded)
    jobs = _grid(loaded, seeds, root)
    if report is not None:
        read_report(report)  # a page that cannot take the table must not wait for hours
    with Grid("benchmark", jobs, out / "benchmark") as grid:
        results, failed = grid.run(
            columns, root=root, out=out, cache=cache, workers=workers, reporter=reporter
        )
        rows = []
        for label in dict.fromkeys(job.label for job in jobs):
            mine = [job for job in jobs if job.label == label and job.key in results]
            done = {job.config.seed: results[job.key] for job in mine}
            if done:
                rows.append(summary(label, done, known.get(label, {}), columns))
        text = markdown(rows, command, columns)
        if rows:
            first = columns.first
            dots = {r["config"]: (r[f"{first}_values"], r[f"published_{first}"]) for r in rows}
            grid.tracker.log_text(text, "benchmark.md")
            title = f"Test {columns.titles[0]}"
            grid.tracker.log_figure(plots.spread(dots, title), "plots/benchmark.png")
    if report is not None:
        write_report(report, text)
    return {"rows": rows, "failed": failed, "metrics": columns._asdict(), "markdown": text}


def _load(configs: Sequence[Path], overrides: Sequence[str]) -> dict[str, AnyRunConfig]:
    stems = [path.stem for path in configs]
    double = {stem for stem in stems if stems.count(stem) > 1}
    if double:
        raise InputError(f"configs: {min(double)!r} is given twice; file names must differ")
    return {path.stem: load_config(path, overrides) for path in configs}


def _grid(loaded: Mapping[str, AnyRunConfig], seeds: int, root: str) -> list[Job]:
    jobs = []
    for label, first in loaded.items():
        needs_test(first, label)
        data = data_digest(first, root)
        for seed in range(first.seed, first.seed + seeds):
            jobs.append(Job(label, first.model_copy(update={"seed": seed}), data))
    return jobs


def _published(
    path: Path | None, columns: Columns, labels: Collection[str]
) -> Mapping[str, Mapping[str, Any]]:
    if path is None:
        return {}
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"published {path}: cannot be read ({error})") from error
    metrics = (columns.first, columns.second)
    if not isinstance(tree, dict):
        keys = ", ".join(metrics)
        raise InputError(f"published {path}: must be a mapping of config: {{{keys}, source}}")
    for label, values in ((label, tree[label]) for label in tree if label in labels):
        if not isinstance(values, dict) or not values.keys() <= {*metrics, "source"}:
            raise InputError(
                f"published {path}: {label}: must be a mapping of {', '.join(metrics)} and source"
            )
        for key in metrics:
            if not isinstance(values.get(key), float | int | None):
                raise InputError(
                    f"published {path}: {label}.{key}: {values[key]!r} is no number; give it as "
                    "0.98 or leave it out"
                )
    return tree
