"""One run: read, fit, train, evaluate, export, verify, track."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from pipelines.prepare import Prepared, prepare
from recsys.bundle import export_verified
from recsys.config import RunConfig
from recsys.training import plots
from recsys.training.checkpoint import load_checkpoint
from recsys.training.explanations import log_attention
from recsys.training.prediction import Predictions
from recsys.training.progress import Reporter, SilentReporter
from recsys.training.tracking import Tracker, open_tracker
from recsys.training.trainer import Interrupted, Trainer, TrainResult
from recsys.types import Metrics
from serving.encode import InputField
from serving.parquet import Source, write_parquet

Result = dict[str, Any]


def run(
    config: RunConfig,
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
        tags=_tags(config),
        parent=parent,
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
        phases = prepared.assembly.phases()
        trained = trainer.fit(prepared.train, prepared.valid, phases)
        result = _finish(config, prepared, trainer, trained, tracker, folder)
        result["seconds"] = time.perf_counter() - started
        tracker.log_json(result, "result.json")
    except (KeyboardInterrupt, Interrupted):
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
) -> Result:
    """Evaluates, exports and verifies the trained model, and records all of it."""
    metrics = {}
    for split in ("valid", "test"):
        rows = getattr(prepared, split)
        if rows is not None:
            predictions = trainer.predict(rows)
            metrics[split] = predictions.metrics()
            _log_predictions(tracker, predictions, split, config.name)
    for phase, history in trained.phases.items():
        suffix, title = "", config.name
        if len(trained.phases) > 1:
            suffix, title = f"_{phase}", f"{config.name}, {phase}"
        if history:
            tracker.log_figure(plots.curves(history, title), f"plots/curves{suffix}.png")
    rate = trained.rows_per_second
    training_bytes = prepared.assembly.memory().training_bytes
    trainer.model.to("cpu")
    log_attention(
        tracker,
        trainer.model,
        prepared.valid or prepared.train,
        [field.name for field in prepared.features.fields],
        title=config.name,
        seed=config.seed,
    )
    assembly = prepared.assembly.finalise()
    # what is served, but for what training took
    memory = asdict(replace(assembly.memory(), training_bytes=training_bytes))
    parameters = sum(p.numel() for p in assembly.model.parameters())
    selection = prepared.assembly.selection
    kept = {} if selection is None else {"selection": selection.report()}
    _log_finals(tracker, metrics, memory, rate, trained.steps)
    source = prepared.raw.valid or prepared.raw.train
    rows = first_rows(source, prepared.features.inputs, config.export.verify_rows)
    report = export_verified(
        assembly.model,
        assembly.encoder,
        assembly.id_map,
        prepared.features.inputs,
        folder / "bundle",
        manifest={
            "name": config.name,
            "run_id": tracker.run_id,
            "config": config.model_dump(mode="json"),
            "metrics": metrics,
            "memory": memory,
            **kept,
        },
        features=prepared.features,
        rows=rows,
        tolerance=config.export.tolerance,
    )
    name = config.name if config.tracking.register_model else None
    tracker.log_bundle(folder / "bundle", rows.slice(0, 5).to_pandas(), name)
    return {
        "run_id": tracker.run_id,
        "bundle": str(folder / "bundle"),
        "metrics": metrics,
        "memory": memory,
        **kept,
        "parameters": parameters,
        "epochs": len(trained.history) or config.train.max_epochs,
        "steps": trained.steps,
        "rows_per_second": rate,
        "verified": asdict(report),
    }


def first_rows(source: Source, inputs: Sequence[InputField], count: int) -> pa.Table:
    """The first ``count`` raw rows of the columns that ``inputs`` read."""
    columns = list(dict.fromkeys(field.column for field in inputs))
    batches: list[pa.RecordBatch] = []
    with closing(source.batches(columns, count)) as stream:
        for batch in stream:
            batches.append(batch)
            if sum(part.num_rows for part in batches) >= count:
                break
    schema = batches[0].schema if batches else pa.schema([source.schema.field(c) for c in columns])
    return pa.Table.from_batches(batches, schema).slice(0, count)


def _tags(config: RunConfig) -> dict[str, str]:
    tags = {"model": config.model.name, "embedding": config.embedding.method}
    return tags if config.selection is None else {**tags, "selection": config.selection.method}


def _log_inputs(tracker: Tracker, prepared: Prepared) -> None:
    for split in ("train", "valid", "test"):
        source = getattr(prepared.raw, split)
        if source is not None:
            tracker.log_inputs(
                split,
                fingerprint=source.fingerprint,
                uri=str(source.files[0]),
                schema=source.schema,
                rows=source.num_rows,
            )


def _log_predictions(tracker: Tracker, predictions: Predictions, split: str, title: str) -> None:
    """The scores of every row, for `recsys compare`, and the plots of them."""
    columns = {
        "row": np.arange(len(predictions.scores), dtype=np.int64),
        "label": predictions.labels,
        "score": predictions.scores,
    }
    table = pa.table(columns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{split}.parquet"
        with write_parquet(path, table.schema) as writer:
            writer.write_table(table)
        tracker.log_artifact(path, "predictions")
    figures = plots.of_predictions(
        predictions.labels, predictions.scores, f"{title}, {split}", predictions.weights
    )
    for name, figure in figures.items():
        tracker.log_figure(figure, f"plots/{split}/{name}.png")


def _log_finals(
    tracker: Tracker,
    metrics: dict[str, Metrics],
    memory: dict[str, int],
    rate: float,
    steps: int,
) -> None:
    for split, values in metrics.items():
        finals = {f"final/{split}/{key}": value for key, value in values.items()}
        tracker.log_metrics(finals, step=steps)
    sizes = {f"memory/{key}": float(value) for key, value in memory.items()}
    tracker.log_metrics({**sizes, "train/rows_per_second": rate}, step=steps)


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
