"""A grid of runs: resumable, in worker processes, nested under one tracked run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipelines import train
from pipelines.benchmark_report import CLICKS, Columns, ranking_columns
from recsys.bundle import VerifyError
from recsys.config import AnyRunConfig, SequenceRunConfig, parse_config
from recsys.disk import write_whole
from recsys.training.progress import Reporter
from recsys.training.tracking import Tracker, open_tracker, resolve_uri
from recsys.training.trainer import Interrupted
from serving.errors import InputError
from serving.parquet import open_source

Result = dict[str, Any]


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


class Grid:
    """The jobs under one tracked run, which is the same one when the grid goes on.

    Finished runs are kept in ``folder`` and not repeated; an interrupted one goes on from its
    checkpoint. ``name``: of the run that the others are nested under.
    """

    def __init__(self, name: str, jobs: Sequence[Job], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tracking = jobs[0].config.tracking
        place = "none" if tracking.uri is None else resolve_uri(tracking.uri)
        said = [place, tracking.experiment, *(job.key for job in jobs)]
        digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
        self._file = folder / f"grid-{digest[:8]}.txt"
        self._name, self._jobs, self._folder = name, jobs, folder
        self._run_id: str | None = None
        self.tracker: Tracker = open_tracker(tracking)

    def __enter__(self) -> Grid:
        params = {
            "configs": sorted({job.label for job in self._jobs}),
            "seeds": sorted({job.config.seed for job in self._jobs}),
        }
        resume = self._file.read_text().strip() if self._file.exists() else None
        self._run_id = self.tracker.start(self._name, params=params, resume=resume)
        if self._run_id is not None:
            self._file.write_text(self._run_id)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, (KeyboardInterrupt, Interrupted))
        self.tracker.finish("KILLED" if stopped else "FAILED" if kind else "FINISHED")

    def run(
        self,
        columns: Columns,
        *,
        root: str,
        out: Path,
        cache: Path | None,
        workers: int,
        reporter: Reporter,
    ) -> tuple[dict[str, Result], list[str]]:
        """Results by `Job.key`, and a line for each run that failed. ``workers`` processes share
        the cores evenly."""
        results: dict[str, Result] = {}
        failed: list[str] = []
        waiting = []
        for job in self._jobs:
            file = self._folder / f"{job.key}.json"
            if file.exists():
                results[job.key] = json.loads(file.read_text())
            else:
                waiting.append(job)
        if results:
            reporter.say(f"{len(results)} of {len(self._jobs)} runs are there already")
        work = partial(
            _train, root=root, out=out, cache=cache, parent=self._run_id, folder=self._folder
        )
        for job, result in _each(waiting, work, workers, reporter):
            if isinstance(result, str):
                failed.append(f"{job.key}: {result}")
                reporter.say(f"failed: {failed[-1]}")
                continue
            results[job.key] = result
            test = result["metrics"]["test"]
            reporter.say(
                f"{len(results)}/{len(self._jobs)} {job.label} seed {job.config.seed}: "
                f"test {columns.first} {test[columns.first]:.5f}, "
                f"{columns.second} {test[columns.second]:.5f}, {result['seconds']:.0f} s"
            )
        return results, failed


def data_digest(config: AnyRunConfig, root: str) -> str:
    """What the files that a run reads hold."""
    data = config.data
    parts: list[Any] = [data.source]
    if isinstance(config, SequenceRunConfig):
        parts += [None if config.data.items is None else config.data.items.source]
    else:
        parts += [config.data.train, config.data.valid, config.data.test]
    return " ".join(open_source(part, root).fingerprint for part in parts if part is not None)


def needs_test(config: AnyRunConfig, label: str) -> None:
    """Errors: `InputError` without a test split."""
    if isinstance(config, SequenceRunConfig):
        return
    data = config.data
    if data.test is None and data.source is None:
        raise InputError(f"config {label}: a benchmark needs data.test")
    split = data.split
    if split is not None and split.method != "leave_last_out" and split.test == 0:
        raise InputError(f"config {label}: a benchmark needs a test part; set data.split.test")


def columns_of(loaded: Mapping[str, AnyRunConfig]) -> Columns:
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
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:  # nothing new starts; what is running writes its own result
            pool.shutdown(cancel_futures=True)
            raise


def _share_cores(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _guarded(work: Any, job: Job, **options: Any) -> Result | str:
    """One bad run of a grid must not cost the others."""
    try:
        result: Result = work(job.config.model_dump(mode="json"), job.key, **options)
    except Interrupted:
        raise
    except Exception as error:  # out of memory, a full disk: other runs may be smaller
        return failure(error)
    return result


def failure(error: Exception) -> str:
    """Why a run failed, in one line; what is no fault of its config by the kind of error, too."""
    line = " ".join(str(error).split())
    known = isinstance(error, InputError | VerifyError)
    return line if known else f"{type(error).__name__}: {line}"


def _train(config: dict[str, Any], key: str, *, folder: Path, **options: Any) -> Result:
    """Trains, and writes the result at once: the process that asked may be gone by then."""
    trained = train.run(parse_config(config), **options)
    result = {name: value for name, value in trained.items() if name != "verified"}
    write_whole(folder / f"{key}.json", json.dumps(result))
    return result
