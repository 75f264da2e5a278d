"""Configs x seeds: one table of test metrics with their spread, beside published values."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import yaml

from pipelines import train
from pipelines.benchmark_report import (
    CLICKS,
    Columns,
    markdown,
    ranking_columns,
    read_report,
    render,
    summary,
    write_report,
)
from recsys.config import AnyRunConfig, SequenceRunConfig, load_config, parse_config
from recsys.training import plots
from recsys.training.progress import Reporter, SilentReporter
from recsys.training.tracking import open_tracker
from recsys.training.trainer import Interrupted
from serving.errors import InputError
from serving.parquet import open_source

Result = dict[str, Any]

__all__ = ["render", "run"]


@dataclass(frozen=True)
class Job:
    """One run of the grid. ``label``: stem of the config's file; ``data``: digest of its data."""

    label: str
    config: AnyRunConfig
    data: str

    @property
    def key(self) -> str:
        """Names the run's saved result: other data or settings have another."""
        digest = hashlib.sha256(f"{self.config.fingerprint} {self.data}".encode()).hexdigest()
        return f"{self.label}-seed{self.config.seed}-{digest[:8]}"


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
    Finished runs are kept in ``out/benchmark`` and not
    repeated, and an interrupted one goes on from its checkpoint. ``workers`` processes share the
    cores evenly.
    ``published``: YAML of ``config: {METRIC: value, source: text}``. ``report``: Markdown file to write;
    where it exists, only the part between its two `recsys benchmark` comments is replaced.

    Errors: `InputError` for configs that do not load, before anything runs.
    """
    reporter = reporter or SilentReporter()
    loaded = _load(configs, overrides)
    columns = _columns(loaded)
    known = _published(published, columns, loaded)
    jobs = _grid(loaded, seeds, root)
    if report is not None:
        read_report(report)  # a page that cannot take the table must not wait for hours
    folder = out / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    with _Parent(jobs, folder) as (parent, tracker):
        results, failed = _run_all(
            jobs,
            folder,
            partial(_train, root=root, out=out, cache=cache, parent=parent),
            workers,
            reporter,
            columns,
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
            tracker.log_text(text, "benchmark.md")
            title = f"Test {columns.titles[0]}"
            tracker.log_figure(plots.spread(dots, title), "plots/benchmark.png")
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
        parts = _data(first, label)
        data = " ".join(open_source(part, root).fingerprint for part in parts if part is not None)
        for seed in range(first.seed, first.seed + seeds):
            jobs.append(Job(label, first.model_copy(update={"seed": seed}), data))
    return jobs


def _data(config: AnyRunConfig, label: str) -> list[Any]:
    """The paths that a run reads; it needs a test split."""
    if isinstance(config, SequenceRunConfig):
        return [config.data.source]
    data = config.data
    if data.test is None and data.source is None:
        raise InputError(f"config {label}: a benchmark needs data.test")
    return [data.source, data.train, data.valid, data.test]


def _columns(loaded: Mapping[str, AnyRunConfig]) -> Columns:
    """What the table shows. Errors: `InputError` for runs that have no metric in common."""
    rankings = {
        label: config.ranking
        for label, config in loaded.items()
        if isinstance(config, SequenceRunConfig)
    }
    if not rankings:
        return CLICKS
    others = loaded.keys() - rankings.keys()
    if others:
        raise InputError(
            f"configs: {min(rankings)} ranks items and {min(others)} scores clicks, which no "
            "metric compares; run one benchmark for each kind"
        )
    cutoffs = {ranking.shown for ranking in rankings.values()}
    if len(cutoffs) > 1:
        raise InputError(
            "configs: ranking.cutoffs have no k in common for the table; measure 10 in all of them"
        )
    return ranking_columns(cutoffs.pop())


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


class _Parent:
    """The run that all runs of one grid are nested under; the same one when the grid goes on."""

    def __init__(self, jobs: Sequence[Job], folder: Path) -> None:
        digest = hashlib.sha256("\n".join(job.key for job in jobs).encode()).hexdigest()
        self._file = folder / f"grid-{digest[:8]}.txt"
        self._params = {
            "configs": sorted({job.label for job in jobs}),
            "seeds": sorted({job.config.seed for job in jobs}),
        }
        self._tracker = open_tracker(jobs[0].config.tracking)

    def __enter__(self) -> tuple[str | None, Any]:
        resume = self._file.read_text().strip() if self._file.exists() else None
        run_id = self._tracker.start("benchmark", params=self._params, resume=resume)
        if run_id is not None:
            self._file.write_text(run_id)
        return run_id, self._tracker

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, (KeyboardInterrupt, Interrupted))
        self._tracker.finish("KILLED" if stopped else "FAILED" if kind else "FINISHED")


def _run_all(
    jobs: Sequence[Job],
    folder: Path,
    work: Any,
    workers: int,
    reporter: Reporter,
    columns: Columns,
) -> tuple[dict[str, Result], list[str]]:
    results: dict[str, Result] = {}
    failed: list[str] = []
    waiting = []
    for job in jobs:
        file = folder / f"{job.key}.json"
        if file.exists():
            results[job.key] = json.loads(file.read_text())
        else:
            waiting.append(job)
    if results:
        reporter.say(f"{len(results)} of {len(jobs)} runs are there already")
    for job, result in _each(waiting, work, workers, reporter):
        if isinstance(result, str):
            failed.append(f"{job.key}: {result}")
            reporter.say(f"failed: {failed[-1]}")
            continue
        results[job.key] = result
        temporary = folder / f"{job.key}.json.partial"
        temporary.write_text(json.dumps(result))
        temporary.replace(folder / f"{job.key}.json")
        test = result["metrics"]["test"]
        reporter.say(
            f"{len(results)}/{len(jobs)} {job.label} seed {job.config.seed}: "
            f"test {columns.first} {test[columns.first]:.5f}, "
            f"{columns.second} {test[columns.second]:.5f}, {result['seconds']:.0f} s"
        )
    return results, failed


def _each(
    jobs: Sequence[Job], work: Any, workers: int, reporter: Reporter
) -> Iterator[tuple[Job, Result | str]]:
    """Each job with its result, or with the line that says why there is none."""
    if workers == 1:
        for job in jobs:
            yield job, _guarded(work, job, reporter=reporter)
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_share_cores, initargs=(threads,)
    ) as pool:
        futures = {pool.submit(_guarded, work, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _share_cores(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _guarded(work: Any, job: Job, **options: Any) -> Result | str:
    """One bad config of a grid must not cost the others."""
    try:
        result: Result = work(job.config.model_dump(mode="json"), **options)
    except InputError as error:
        return " ".join(str(error).split())
    return result


def _train(config: dict[str, Any], **options: Any) -> Result:
    result = train.run(parse_config(config), **options)
    return {key: value for key, value in result.items() if key != "verified"}
