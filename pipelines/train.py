"""One run: read, fit, train, evaluate, export, verify, track."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from pipelines.clicks import ClickTask
from pipelines.prepare import prepare, prepare_sequences
from pipelines.ranking import RankingTask
from pipelines.sample import first_rows
from pipelines.task import Task
from recsys.bundle.warm_start import warm_start
from recsys.config import AnyRunConfig, SequenceRunConfig, public
from recsys.disk import alone_in
from recsys.training.checkpoint import load_checkpoint
from recsys.training.prediction import open_device, slow_precision
from recsys.training.progress import Reporter, SilentReporter
from recsys.training.tracking import Tracker, open_tracker
from recsys.training.tracking.finishing import finishing
from recsys.training.trainer import Trainer, TrainResult, Watch
from recsys.types import Metrics

Result = dict[str, Any]


def run(
    config: AnyRunConfig,
    *,
    root: str = ".",
    out: Path = Path("runs"),
    cache: Path | None = None,
    parent: str | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Runs ``config``, tracked as nested under run ``parent`` if there is one; returns
    ``{run_id, bundle, metrics, memory, parameters, epochs, steps, seconds, rows_per_second}``.

    The run's folder is ``out/NAME-FINGERPRINT``: a checkpoint there from an interrupted run of the
    same config is continued, and the bundle is written there. Errors: `InputError` while another
    process trains there.
    """
    started = time.perf_counter()
    reporter = reporter or SilentReporter()
    folder = out / f"{config.name}-{config.fingerprint[:8]}"
    open_device(config.train.device)  # refused before any data is read
    task = open_task(config, root=root, cache=cache or out / "cache", reporter=reporter)
    slow = slow_precision(config.train.precision, config.train.device)
    if slow is not None:
        reporter.say(slow)
    with (
        alone_in(folder),
        trained(config, task, folder, parent=parent, reporter=reporter) as (fit, tracker),
    ):
        result = _finish(config, task, fit, tracker, folder)
        result["seconds"] = time.perf_counter() - started
        tracker.log_json(result, "result.json")
    return result


def open_task(config: AnyRunConfig, *, root: str, cache: Path, reporter: Reporter) -> Task:
    """What kind of run ``config`` is, prepared: the one place that asks."""
    if isinstance(config, SequenceRunConfig):
        sequences = prepare_sequences(config, root=root, cache=cache, reporter=reporter)
        return RankingTask(config, sequences)
    return ClickTask(config, prepare(config, root=root, cache=cache, reporter=reporter))


@contextmanager
def trained(
    config: AnyRunConfig,
    task: Task,
    folder: Path,
    *,
    parent: str | None = None,
    watch: Watch | None = None,
    reporter: Reporter,
) -> Iterator[tuple[TrainResult, Tracker]]:
    """Trains a prepared task in a tracked run, which ends with the block. A checkpoint in
    ``folder`` is continued, and goes with the end of the block. ``watch``: see `Trainer`."""
    checkpoints = folder / "checkpoint"
    saved = load_checkpoint(checkpoints)
    if config.train.warm_start is not None and saved is None:
        reporter.say(str(warm_start(task.assembly.model, task.prepared.features, config)))
    tracker = open_tracker(config.tracking)
    tracker.start(
        config.name,
        params=public(config),
        tags={**task.tags, "folder": folder.name},
        parent=parent,
        resume=saved.state["run_id"] if saved is not None else None,
    )
    with finishing(tracker):
        trainer = Trainer(
            model=task.assembly.model,
            config=config.train,
            seed=config.seed,
            fingerprint=config.fingerprint,
            evaluate=task.evaluate,
            watch=watch,
            out=checkpoints,
            tracker=tracker,
            log_every=config.tracking.log_every,
            reporter=reporter,
        )
        _log_inputs(tracker, task)
        yield trainer.fit(task.prepared.train, task.prepared.valid, task.phases()), tracker
    shutil.rmtree(checkpoints, ignore_errors=True)


def _finish(
    config: AnyRunConfig, task: Task, fit: TrainResult, tracker: Tracker, folder: Path
) -> Result:
    """Evaluates, exports and verifies the trained model, and records all of it."""
    metrics = task.measure(tracker)
    for phase, history in fit.phases.items():
        suffix, title = "", config.name
        if len(fit.phases) > 1:
            suffix, title = f"_{phase}", f"{config.name}, {phase}"
        if history:
            tracker.log_figure(task.curves(history, title), f"plots/curves{suffix}.png")
    training_bytes = task.assembly.memory().training_bytes
    task.assembly.model.to("cpu")
    kept = task.finalise(tracker)
    # what is served, but for what training took
    memory = asdict(replace(task.assembly.memory(), training_bytes=training_bytes))
    _log_finals(tracker, metrics, memory, fit)
    source = task.prepared.raw.valid or task.prepared.raw.train
    rows = first_rows(source, task.prepared.features.inputs, config.export.verify_rows)
    manifest = {
        "name": config.name,
        "run_id": tracker.run_id,
        "config": public(config),
        "metrics": metrics,
        "memory": memory,
        **kept,
    }
    report = task.export(folder / "bundle", rows, manifest)
    name = config.name if config.tracking.register_model else None
    tracker.log_bundle(folder / "bundle", rows.slice(0, 5).to_pandas(), name)
    return {
        "run_id": tracker.run_id,
        "bundle": str(folder / "bundle"),
        "metrics": metrics,
        "memory": memory,
        **kept,
        "parameters": sum(p.numel() for p in task.assembly.model.parameters()),
        "epochs": len(fit.history) or config.train.max_epochs,
        "steps": fit.steps,
        "rows_per_second": fit.rows_per_second,
        "verified": asdict(report),
    }


def _log_inputs(tracker: Tracker, task: Task) -> None:
    for split in ("train", "valid", "test"):
        source = getattr(task.prepared.raw, split)
        if source is not None:
            tracker.log_inputs(
                split,
                fingerprint=source.fingerprint,
                uri=str(source.files[0]),
                schema=source.schema,
                rows=source.num_rows,
            )


def _log_finals(
    tracker: Tracker, metrics: dict[str, Metrics], memory: dict[str, int], trained: TrainResult
) -> None:
    for split, values in metrics.items():
        finals = {f"final/{split}/{key}": value for key, value in values.items()}
        tracker.log_metrics(finals, step=trained.steps)
    sizes = {f"memory/{key}": float(value) for key, value in memory.items()}
    speed = {"train/rows_per_second": trained.rows_per_second}
    tracker.log_metrics({**sizes, **speed}, step=trained.steps)


def render(result: Result) -> Table:
    """Splits side by side, then sizes and where things are."""
    splits = list(result["metrics"])
    table = Table(title=None, show_header=True)
    table.add_column("")
    for split in splits:
        table.add_column(split, justify="right")
    for key in next(iter(result["metrics"].values()), {}):
        values = [result["metrics"][split].get(key, float("nan")) for split in splits]
        table.add_row(key, *(f"{v:,.0f}" if key == "rows" else f"{v:.5f}" for v in values))
    memory, verified = result["memory"], result["verified"]
    table.caption = (
        f"tables: {memory['trainable_params']:,} parameters, {memory['stored_bytes']:,} bytes, "
        f"{memory['lookups_per_row']} lookups a row\n{_kept(result)}"
        f"{result['epochs']} epochs, {result['steps']:,} steps, "
        f"{result['rows_per_second']:,.0f} rows/s, {result['seconds']:.0f} s in all\n"
        f"verified on {verified['rows']:,} raw rows, largest difference "
        f"{verified['max_abs_diff']:.1e}\n"
        f"bundle: {result['bundle']}"
    )
    table.caption_justify = "left"
    return table


def _kept(result: Result) -> str:
    if "selection" not in result:
        return ""
    kept, rows = result["selection"]["rows_kept"], result["selection"]["rows"]
    return f"kept: {kept:,} of {rows:,} rows ({kept / rows:.1%})\n"
