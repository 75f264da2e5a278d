"""A synthetic log of very many ids whose best possible AUC is known, to compare tables under.

Eight columns of int64 ids, ``big_0 .. big_3``, ``mid_0``, ``mid_1``, ``small`` and ``noise``. Of
each column's lookups 70 % follow Zipf's law and 30 % are spread evenly, so that two million rows
meet about a million and a half ids, most of them once or twice, as in real logs. Half of the values
of every column, and all of ``noise``, say nothing: a method that drops what is useless should drop
those. The others have an effect of their own and a hidden vector; the logit is

    bias + sum_f effect_f[x_f] + <u[big_2], v[mid_1]> + <u[mid_0], v[small]>.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.data.synthetic import mid_rank_auc
from serving.parquet import write_parquet

__all__ = ["COLUMNS", "IdLog", "write_id_log"]

COLUMNS = {
    "big_0": 1_200_000,
    "big_1": 800_000,
    "big_2": 400_000,
    "big_3": 100_000,
    "mid_0": 10_000,
    "mid_1": 1_000,
    "small": 100,
    "noise": 50_000,
}
PAIRS = (("big_2", "mid_1"), ("mid_0", "small"))
USELESS = "noise"
BIAS, EFFECT, PAIR, EVEN = -1.6, 0.55, 0.8, 0.3
CHUNK_ROWS = 65_536
SCHEMA = pa.schema([*((name, pa.int64()) for name in COLUMNS), ("label", pa.int8())])


@dataclass(frozen=True)
class IdLog:
    """Where the log lies, and what is true of it.

    ``bayes_auc``: AUC of the true probabilities on the labels of ``test``. ``useful``: column ->
    (size,) bool, the raw ids that say something.
    """

    train: Path
    valid: Path
    test: Path
    bayes_auc: float
    useful: dict[str, np.ndarray]


def write_id_log(
    out_dir: str | os.PathLike[str],
    *,
    rows: int = 2_000_000,
    eval_rows: int = 200_000,
    shrink: int = 1,
    seed: int = 0,
) -> IdLog:
    """Writes ``train.parquet`` (``rows``), ``valid.parquet`` and ``test.parquet`` (``eval_rows``
    each) into ``out_dir``. ``shrink`` divides the sizes of all columns, for small logs.

    The same arguments give the same files. Memory is one chunk of rows and a few words an id.
    """
    out = Path(out_dir)
    truth = _Truth(np.random.default_rng([seed, 0]), shrink)
    for part, (name, count) in enumerate(
        {"train": rows, "valid": eval_rows, "test": eval_rows}.items(), start=1
    ):
        rng = np.random.default_rng([seed, part])
        chances, labels = [], []
        with write_parquet(out / f"{name}.parquet", SCHEMA) as writer:
            for done in range(0, count, CHUNK_ROWS):
                batch, chance = truth.draw(rng, min(CHUNK_ROWS, count - done))
                writer.write_batch(batch)
                chances.append(chance)
                labels.append(batch.column("label").to_numpy())
        p, y = np.concatenate(chances), np.concatenate(labels).astype(np.float64)
    return IdLog(
        out / "train.parquet",
        out / "valid.parquet",
        out / "test.parquet",
        bayes_auc=mid_rank_auc(p, y, 1 - y),  # of the last part, which is test
        useful=truth.useful,
    )


class _Truth:
    """The hidden effects and vectors of every id; those of useless ids are zero."""

    def __init__(self, rng: np.random.Generator, shrink: int) -> None:
        self.sizes = {name: max(10, size // shrink) for name, size in COLUMNS.items()}
        self.useful: dict[str, np.ndarray] = {}
        self.effect: dict[str, np.ndarray] = {}
        for name, size in self.sizes.items():
            keep = (rng.random(size) < 0.5) & (name != USELESS)
            self.useful[name] = keep
            self.effect[name] = (rng.normal(0, EFFECT, size) * keep).astype(np.float32)
        self.vectors = {
            name: (rng.normal(size=(self.sizes[name], 2)) * self.useful[name][:, None])
            for pair in PAIRS
            for name in pair
        }

    def draw(self, rng: np.random.Generator, n: int) -> tuple[pa.RecordBatch, np.ndarray]:
        """``n`` rows and their true click probabilities."""
        ids = {name: _ids(rng, size, n) for name, size in self.sizes.items()}
        logit = np.full(n, BIAS)
        for name, values in ids.items():
            logit += self.effect[name][values]
        for a, b in PAIRS:
            logit += PAIR * (self.vectors[a][ids[a]] * self.vectors[b][ids[b]]).sum(1)
        chance = 1 / (1 + np.exp(-logit))
        label = (rng.random(n) < chance).astype(np.int8)
        return pa.RecordBatch.from_arrays([*ids.values(), label], schema=SCHEMA), chance


def _ids(rng: np.random.Generator, size: int, n: int) -> np.ndarray:
    """Ids in [0, size): ranks by a continuous law of density 1 / rank, or evenly spread; which id
    has which rank is a fixed bijection, so that ids do not tell their frequency."""
    zipf = np.exp(rng.random(n) * np.log(size + 1)).astype(np.int64) - 1
    rank = np.where(rng.random(n) < EVEN, rng.integers(0, size, n), zipf.clip(0, size - 1))
    step = int(size * 0.618) | 1
    while np.gcd(step, size) != 1:
        step += 2
    return rank * step % size
