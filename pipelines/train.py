"""One run: read, fit, train, evaluate, export, verify, track."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.table import Table

from pipelines.prepare import Prepared, prepare
from recsys.bundle import export_verified
from recsys.config import RunConfig
from recsys.training import plots
from recsys.training.checkpoint import load_checkpoint
from recsys.training.prediction import Predictions
from recsys.training.progress import Reporter, SilentReporter
from recsys.training.tracking import Tracker, open_tracker
from recsys.training.trainer import Trainer, TrainResult
from serving.parquet import write_parquet

Result = dict[str, Any]


def run(
    config: RunConfig,
    *,
    root: str = ".",
    out: Path = Path("runs"),
    cache: Path | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Runs ``config``; returns ``{run_id, bundle, metrics, memory, seconds, rows_per_second}``.

    The run's folder is ``out/NAME-FINGERPRINT``: a checkpoint there from an interrupted run of the
    same config is continued, and the bundle is written there.
    """
    started = time.perf_counter()
    reporter = reporter or SilentReporter()
    folder = out / f"{config.name}-{config.fingerprint[:8]}"
    checkpoints = folder / "checkpoint"
    prepared = prepare(config, root=root, cache=cache or out / "cache", reporter=reporter)
    saved = load_checkpoint(checkpoints)
    tracker = open_tracker(config.tracking)
    tracker.start(
        config.name,
        params=config.model_dump(mode="json"),
        tags={"model": config.model.name, "embedding": config.embedding.method},
        resume=saved.state["run_id"] if saved is not None else None,
    )
    try:
        trainer = Trainer(
            model=prepared.assembly.model,
            config=config.train,
            seed=config.seed,
            fingerprint=config.fingerprint,
            out=checkpoints,
            tracker=tracker,
            log_every=config.tracking.log_every,
            reporter=reporter,
        )
        _log_inputs(tracker, prepared)
        trained = trainer.fit(prepared.train, prepared.valid)
        result = _finish(config, prepared, trainer, trained, tracker, folder, reporter)
        result["seconds"] = time.perf_counter() - started
        tracker.log_json(result, "result.json")
    except KeyboardInterrupt:
        tracker.finish("KILLED")
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish()
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _finish(
    config: RunConfig,
    prepared: Prepared,
    trainer: Trainer,
    trained: TrainResult,
    tracker: Tracker,
    folder: Path,
    reporter: Reporter,
) -> Result:
    """Evaluates, exports and verifies the trained model, and records all of it."""
    memory = prepared.assembly.memory()
    metrics = {}
    for split in ("valid", "test"):
        rows = getattr(prepared, split)
        if rows is not None:
            predictions = trainer.predict(rows)
            metrics[split] = predictions.metrics()
            _log_predictions(tracker, predictions, split, config.name)
    if trained.history:
        tracker.log_figure(plots.curves(trained.history), "plots/curves.png")
    result: Result = {
        "run_id": tracker.run_id,
        "bundle": str(folder / "bundle"),
        "metrics": metrics,
        "memory": asdict(memory),
        "epochs": len(trained.history) or config.train.max_epochs,
        "steps": trained.steps,
        "rows_per_second": trained.rows_per_second,
    }
    for split, values in metrics.items():
        final = {f"final/{split}/{key}": value for key, value in values.items()}
        tracker.log_metrics(final, step=trained.steps)
    sizes = {f"memory/{key}": float(value) for key, value in asdict(memory).items()}
    rate = {"train/rows_per_second": trained.rows_per_second}
    tracker.log_metrics({**sizes, **rate}, step=trained.steps)
    reporter.say("export and verify")
    return result
