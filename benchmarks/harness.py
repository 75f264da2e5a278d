"""What every stage script shares: the sizes of the work, its command line, its one JSON line.

A stage script (`ours.py`, `peer_*.py`) runs one stage in its own process, so that a peak memory
belongs to one stage. The scripts run in two environments; this file needs the standard library,
pyarrow and torch only.

Stages: ``ingest`` (fit features and encode a log to what training reads), ``train`` (a fixed
number of AutoInt steps), ``predict`` (score the rows of the score file); ``export`` is the untimed
step before it where a system needs one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

EMBEDDING_DIM = 16
ATTENTION_LAYERS = 3
ATTENTION_DIM = 32
HEADS = 2
HIDDEN_UNITS = (400, 400)
LEARNING_RATE = 1e-3
SEED = 2021
LABEL = "label"

Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """One stage of one system: what to read, where to write, how much to do."""

    stage: str
    log: Path
    score_file: Path
    work: Path
    batch_size: int
    steps: int
    warmup: int
    threads: int
    precision: str

    @property
    def train_rows(self) -> int:
        """Rows of the timed steps."""
        return self.steps * self.batch_size


def parse_job(argv: Sequence[str] | None = None) -> Job:
    """The command line of a stage script as a `Job`; makes the work folder and sets threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", choices=("ingest", "train", "export", "predict"))
    parser.add_argument("--log", type=Path, required=True, help="raw training log, Parquet")
    parser.add_argument("--score-file", type=Path, required=True, help="raw rows to score, Parquet")
    parser.add_argument("--work", type=Path, required=True, help="folder of this system")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    job = Job(**vars(parser.parse_args(argv)))
    job.work.mkdir(parents=True, exist_ok=True)

    import torch

    torch.set_num_threads(job.threads)
    torch.manual_seed(SEED)
    return job


def columns(log: Path) -> tuple[list[str], list[str]]:
    """Names of the numeric and of the text columns of a log, label left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numeric, text = [], []
    for field in pq.read_schema(log):
        if field.name == LABEL:
            continue
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        (numeric if pa.types.is_integer(kind) or pa.types.is_floating(kind) else text).append(
            field.name
        )
    return numeric, text


def num_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def timed(work: Callable[[], Item]) -> tuple[Item, float]:
    """The result of ``work()`` and the seconds it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


class TimedBatches(Iterable[Item]):
    """Hands out ``warmup + steps`` batches and keeps the times of the timed steps.

    ``started``: the end of the warm-up. ``ended``: the return of the last step. ``waited``: seconds
    spent inside the loader in between.
    """

    def __init__(self, loader: Iterable[Item], *, warmup: int, steps: int) -> None:
        self.loader = loader
        self.warmup = warmup
        self.steps = steps
        self.started = 0.0
        self.ended = 0.0
        self.waited = 0.0

    def __len__(self) -> int:
        return self.warmup + self.steps

    def __iter__(self) -> Iterator[Item]:
        batches = iter(self.loader)
        for step in range(len(self)):
            asked = time.perf_counter()
            if step == self.warmup:
                self.started = asked
            batch = next(batches)
            if step >= self.warmup:
                self.waited += time.perf_counter() - asked
            yield batch
        self.ended = time.perf_counter()


def mean_loss(losses: Sequence[float], job: Job) -> float:
    """Mean loss of the timed steps: a sign that they did train."""
    timed_steps = losses[job.warmup :]
    assert len(timed_steps) == job.steps, f"{len(losses)} losses"
    return round(sum(timed_steps) / job.steps, 5)


def parameter_counts(model: Any, network: Callable[[str], bool]) -> dict[str, int]:
    """Trainable numbers: of the network (parameters whose name passes) and of everything else."""
    counts = {"network": 0, "tables": 0}
    for name, parameter in model.named_parameters():
        counts["network" if network(name) else "tables"] += parameter.numel()
    return counts


def report(
    job: Job, *, system: str, rows: int, seconds: float, packages: Sequence[str], **more: Any
) -> None:
    """Print the stage's one JSON line on stdout."""
    record = {
        "system": system,
        "stage": job.stage,
        "rows": rows,
        "seconds": round(seconds, 4),
        "rows_per_second": round(rows / seconds, 1),
        # Linux counts ru_maxrss in KiB; workers that the stage starts are in run.py's figure only.
        "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": job.threads,
        "batch_size": job.batch_size,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", *packages)},
        **more,
    }
    sys.stdout.flush()
    print("\n" + json.dumps(record), flush=True)
