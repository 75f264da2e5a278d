"""Work of one system in turns: a process per system, all alive at once, one of them working.

The system's own training loop runs in its process and pulls batches from `Turns`, which waits for
its turn between two of them. Standard library only: the processes run in two environments.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

DIM, LAYERS, HEADS, HIDDEN_UNITS = 64, 2, 2, 256
MAX_LENGTH, DROPOUT, MASK_SHARE = 200, 0.2, 0.2
LEARNING_RATE, SEED = 1e-3, 2021
MODELS = ("bert4rec", "sasrec")


@dataclass(frozen=True)
class Turn:
    """What was done in one turn, and what it took: wall clock and CPU time of all threads."""

    steps: int
    sequences: int
    targets: int
    seconds: float
    cpu_seconds: float


class Turns(Iterable[Item]):
    """Hands out as many batches as each line of stdin says, and then prints a `Turn` as JSON.

    ``sizes``: sequences of a batch, and positions that it trains to predict.
    """

    def __init__(self, batches: Iterable[Item], sizes: Callable[[Item], tuple[int, int]]) -> None:
        self.shuffle = False  # what RecBole's loop asks a loader
        self._batches = iter(batches)
        self._sizes = sizes

    def __iter__(self) -> Iterator[Item]:
        for line in sys.stdin:
            steps, sequences, targets = int(line), 0, 0
            started, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                batch = next(self._batches)
                found = self._sizes(batch)
                sequences, targets = sequences + found[0], targets + found[1]
                yield batch
            # asked for one more batch, so the last step is done
            cpu, wall = time.process_time() - cpu, time.perf_counter() - started
            say(asdict(Turn(steps, sequences, targets, wall, cpu)))


def say(record: dict[str, object]) -> None:
    """One JSON line to the process that hands out the turns."""
    print("\n" + json.dumps(record), flush=True)


def finish(loss: float, packages: dict[str, str]) -> None:
    """The last line of a system: mean loss of its steps, peak memory (Linux counts KiB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say({"loss": round(loss, 4), "peak_bytes": peak, "packages": packages})


@dataclass(frozen=True)
class SequenceJob:
    """What a system is to train, and where its data is."""

    model: str
    precision: str
    batch_size: int
    work: Path
    data_root: str


def parse_job(argv: Sequence[str] | None = None) -> SequenceJob:
    """The command line of a system's process; one thread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of encoded sequences")
    parser.add_argument("--data-root", required=True)
    job = SequenceJob(**vars(parser.parse_args(argv)))

    import torch

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    return job
