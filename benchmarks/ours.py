"""recsys at the same work as its peers.

- ingest: `pipelines.prepare.prepare` on the raw Parquet log: fit the features (standardised
  numerics, every id kept), build the modules, write the encoded cache. From an empty cache.
- train: `recsys.training.trainer.Trainer` over the encoded cache, shuffled, with the `full` table,
  Adam (row-sparse or dense per table by its size) and gradients clipped at norm 10 as FuxiCTR does.
- export (untimed): a bundle of the untrained model, for predict.
- predict: `serving.batch.score`: raw text Parquet in, Parquet with a score column out, opening and
  checking the bundle included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pandas  # noqa: F401  pyarrow imports it at its first conversion; imports are not timed
import pyarrow.parquet as pq

from benchmarks.harness import (
    ATTENTION_DIM,
    ATTENTION_LAYERS,
    EMBEDDING_DIM,
    HEADS,
    HIDDEN_UNITS,
    LABEL,
    LEARNING_RATE,
    SEED,
    Job,
    TimedBatches,
    columns,
    mean_loss,
    num_rows,
    parameter_counts,
    parse_job,
    report,
    timed,
)
from pipelines.prepare import Prepared, prepare
from recsys.bundle import export
from recsys.config import RunConfig, parse_config
from recsys.data import EncodedData
from recsys.training.progress import SilentReporter
from recsys.training.tracking import NullTracker
from recsys.training.trainer import Trainer
from recsys.types import Batch, Target
from serving.batch import score
from serving.process import keep_freed_memory

CLIP_NORM = 10.0  # the default of FuxiCTR's loop
PACKAGES = ("pyarrow", "polars", "numpy")


class Losses(NullTracker):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Step losses alone are kept."""
        if "train/loss" in metrics:
            self.values.append(metrics["train/loss"])


class FixedSteps:
    """The encoded rows of the warm-up and of the timed steps, as the trainer reads them."""

    def __init__(self, data: EncodedData, job: Job) -> None:
        self.fingerprint = data.fingerprint
        self.timed: TimedBatches[tuple[Batch, Target]] | None = None
        self._data = data
        self._job = job

    def __len__(self) -> int:
        return (self._job.warmup + self._job.steps) * self._job.batch_size

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[tuple[Batch, Target]]:
        """The first batches of an epoch, with a clock around them."""
        loader: Iterable[tuple[Batch, Target]] = self._data.batches(
            batch_size, shuffle=shuffle, seed=seed, epoch=epoch, start=start
        )
        self.timed = TimedBatches(loader, warmup=self._job.warmup, steps=self._job.steps)
        return iter(self.timed)


def _config(job: Job) -> RunConfig:
    numeric, text = columns(job.log)
    return parse_config(
        {
            "name": "benchmark",
            "seed": SEED,
            "data": {"train": str(job.log), "label": LABEL},
            "features": {
                **{name: {"type": "numeric", "normalise": "standard"} for name in numeric},
                **{name: {"type": "categorical"} for name in text},
            },
            "embedding": {"method": "full", "embedding_dim": EMBEDDING_DIM},
            "model": {
                "name": "autoint",
                "layers": ATTENTION_LAYERS,
                "heads": HEADS,
                "attention_dim": ATTENTION_DIM,
                "hidden_units": list(HIDDEN_UNITS),
            },
            "train": {
                "batch_size": job.batch_size,
                "max_epochs": 1,
                "learning_rate": LEARNING_RATE,
                "clip_norm": CLIP_NORM,
                "precision": job.precision,
            },
            "tracking": {"uri": None},
        }
    )


def _prepare(job: Job) -> Prepared:
    return prepare(_config(job), root=".", cache=job.work / "cache", reporter=SilentReporter())


def ingest(job: Job) -> None:
    """Raw Parquet -> fitted features and the encoded cache."""
    prepared, seconds = timed(lambda: _prepare(job))
    ids = sum(spec.num_ids or 0 for spec in prepared.features.fields)
    rows = num_rows(job.log)
    report(job, system="recsys", rows=rows, seconds=seconds, packages=PACKAGES, ids=ids)


def train(job: Job) -> None:
    """A fixed number of steps of `Trainer.fit`."""
    prepared = _prepare(job)
    model, losses = prepared.assembly.model, Losses()
    trainer = Trainer(
        model=model, config=_config(job).train, seed=SEED, tracker=losses, log_every=1
    )
    rows = FixedSteps(prepared.train, job)
    trainer.fit(rows)
    assert rows.timed is not None
    report(
        job,
        system="recsys",
        rows=job.train_rows,
        seconds=rows.timed.ended - rows.timed.started,
        packages=PACKAGES,
        loader_seconds=round(rows.timed.waited, 3),
        loss=mean_loss(losses.values, job),
        parameters=parameter_counts(model, lambda name: not name.startswith("embedding")),
        precision=job.precision,
    )


def export_bundle(job: Job) -> None:
    """The bundle that predict scores with."""
    prepared = _prepare(job)
    assembly = prepared.assembly.finalise()
    export(
        assembly.model,
        assembly.encoder,
        assembly.id_map,
        prepared.features.inputs,
        job.work / "bundle",
        manifest={},
    )


def predict(job: Job) -> None:
    """Raw text rows -> a Parquet file of scores."""
    out = job.work / "scores.parquet"
    done, seconds = timed(lambda: score(job.work / "bundle", str(job.score_file), out))
    scores = pq.read_table(out, columns=["score"])["score"].to_numpy()
    assert len(scores) == done.rows == num_rows(job.score_file)
    report(
        job,
        system="recsys",
        rows=done.rows,
        seconds=seconds,
        packages=PACKAGES,
        mean_score=float(scores.mean()),
        precision="fp32",
    )


if __name__ == "__main__":
    task = parse_job()
    keep_freed_memory()  # as both command lines do
    {"ingest": ingest, "train": train, "export": export_bundle, "predict": predict}[task.stage](
        task
    )
