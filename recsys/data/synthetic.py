"""A synthetic click log whose best possible AUC is known.

Columns, Criteo-like: numerics with nulls (``price``, ``age``, ``dwell``, ``noise``), Zipf text
categoricals (``site``, ``device``, ``city``, ``campaign``, ``ad``, ``page``), ``item`` (text), a
bag ``tags`` and a history ``history`` (lists of text; ``history`` holds item ids), ``user`` (int),
``timestamp`` and ``label``. Rows are in the order of time.

The logit of a row is a sum of known terms, and the label is drawn from it, so the true probability
is known and no model can beat its AUC:

    main effects   price, age, dwell, ad, page, tags (mean over the bag)
    planted pairs  site x device, city x campaign: a rank-2 product of hidden vectors each
    history x item share of recent items that are of the item's kind

Pair terms are centred, so no single column shows them: logistic regression cannot reach the
Bayes AUC, a model of pairwise interactions can.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.data.criteo_shape import write_criteo_log
from serving.parquet import write_parquet

__all__ = ["PAIRS", "PlantedLog", "mid_rank_auc", "write_criteo_log", "write_log"]

PAIRS = (("site", "device"), ("city", "campaign"), ("history", "item"))
"""Columns whose interaction is planted."""

SIZES = {"site": 60, "device": 20, "city": 50, "campaign": 30, "ad": 5_000, "page": 20_000}
ITEMS, KINDS, TAGS, USERS = 400, 20, 300, 10_000
HISTORY, BAG = 12, 4
START_MS = 1_700_000_000_000
CHUNK_ROWS = 65_536

SCHEMA = pa.schema(
    [
        ("timestamp", pa.timestamp("ms")),
        ("user", pa.int64()),
        *((name, pa.float32()) for name in ("price", "age", "dwell", "noise")),
        *((name, pa.string()) for name in (*SIZES, "item")),
        ("tags", pa.list_(pa.string())),
        ("history", pa.list_(pa.string())),
        ("label", pa.int8()),
    ]
)


@dataclass(frozen=True)
class PlantedLog:
    """Where a planted log lies and how well it can be predicted.

    ``bayes_auc``: AUC of the true probabilities on the labels of ``test``; ``expected_auc``: its
    expectation over label draws, given those probabilities. ``test_probability``: (rows of test,)
    float64, in file order; it is written nowhere.
    """

    train: Path
    valid: Path
    test: Path
    bayes_auc: float
    expected_auc: float
    pairs: tuple[tuple[str, str], ...]
    test_probability: np.ndarray


def write_log(
    out_dir: str | os.PathLike[str],
    *,
    rows: int = 200_000,
    eval_rows: int | None = None,
    seed: int = 0,
) -> PlantedLog:
    """Write ``train.parquet`` (``rows``), ``valid.parquet`` and ``test.parquet`` (``eval_rows``
    each, by default a quarter of ``rows``) into ``out_dir``.

    The same arguments give the same files. Memory is one chunk of rows.
    """
    out = Path(out_dir)
    world = _World(np.random.default_rng([seed, 0]))
    eval_rows = max(1, rows // 4) if eval_rows is None else eval_rows
    first = 0
    for part, (name, count) in enumerate(
        {"train": rows, "valid": eval_rows, "test": eval_rows}.items(), start=1
    ):
        rng = np.random.default_rng([seed, part])
        truth, labels = [], []
        with write_parquet(out / f"{name}.parquet", SCHEMA) as writer:
            for done in range(0, count, CHUNK_ROWS):
                n = min(CHUNK_ROWS, count - done)
                batch, probability = world.draw(rng, first + done, n)
                writer.write_batch(batch)
                if name == "test":
                    truth.append(probability)
                    labels.append(batch.column("label").to_numpy())
        first += count
    p, y = np.concatenate(truth), np.concatenate(labels).astype(np.float64)
    return PlantedLog(
        out / "train.parquet",
        out / "valid.parquet",
        out / "test.parquet",
        bayes_auc=mid_rank_auc(p, y, 1 - y),
        expected_auc=mid_rank_auc(p, p, 1 - p),
        pairs=PAIRS,
        test_probability=p,
    )


def mid_rank_auc(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    """P(score of a positive > score of a negative) + half the ties, over all pairs of two rows;
    row i counts ``positive[i]`` times as positive and ``negative[i]`` times as negative."""
    order = np.argsort(scores, kind="stable")
    scores, positive, negative = scores[order], positive[order], negative[order]
    starts = np.flatnonzero(np.append(True, scores[1:] != scores[:-1]))
    up, down = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
    below = np.cumsum(down) - down
    own = float((positive * negative).sum())  # a row is no pair with itself
    wins = float((up * (below + down / 2)).sum()) - own / 2
    return wins / (float(up.sum() * down.sum()) - own)


class _World:
    """The hidden truth: popularity, effects and vectors of every value."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.popularity = {name: _zipf(size) for name, size in SIZES.items()}
        self.ad = rng.normal(0.0, 0.3, SIZES["ad"])
        self.page = rng.normal(0.0, 0.1, SIZES["page"])
        self.tag = rng.normal(0.0, 0.6, TAGS)
        self.kind = rng.permutation(ITEMS) % KINDS  # kind of each item
        self.by_kind = np.argsort(self.kind, kind="stable").reshape(KINDS, -1)
        self.taste = rng.integers(0, KINDS, (USERS, 2))  # the two kinds each user likes
        self.pairs: dict[tuple[str, str], np.ndarray] = {
            pair: _centred_pair(rng, *(self.popularity[name] for name in pair))
            for pair in (("site", "device"), ("city", "campaign"))
        }

    def draw(
        self, rng: np.random.Generator, first: int, n: int
    ) -> tuple[pa.RecordBatch, np.ndarray]:
        """Rows ``first .. first + n`` and their true click probabilities."""
        value = {name: rng.choice(len(p), n, p=p) for name, p in self.popularity.items()}
        user = (rng.random(n) ** 2 * USERS).astype(np.int64)
        price, age = rng.lognormal(2.0, 1.0, n), rng.normal(40.0, 12.0, n).clip(18, 90)
        dwell, noise = rng.exponential(30.0, n), rng.normal(0.0, 1.0, n)
        no_price, no_dwell = rng.random(n) < 0.05, rng.random(n) < 0.2

        item = self._items(rng, user, n, taste=0.5)
        lengths = rng.integers(0, HISTORY + 1, n)
        owner = np.repeat(np.arange(n), lengths)
        history = self._items(rng, user[owner], len(owner), taste=0.85)
        same = self.kind[history] == self.kind[item[owner]]
        share = _mean_by_row(owner, same.astype(np.float64), lengths)
        bag_sizes = rng.integers(0, BAG + 1, n)
        bag_owner = np.repeat(np.arange(n), bag_sizes)
        tags = (rng.random(len(bag_owner)) ** 2 * TAGS).astype(np.int64)

        logit = -1.35 + self.ad[value["ad"]] + self.page[value["page"]]
        logit += np.where(no_price, 0.3, -0.7 * (np.log1p(price) - 2.1))
        logit += 0.045 * (age - 40.0) + np.where(no_dwell, -0.2, 0.5 * (np.log1p(dwell) - 3.0))
        logit += _mean_by_row(bag_owner, self.tag[tags], bag_sizes)
        logit += 1.4 * (share - 0.25) * (lengths > 0)
        for (a, b), table in self.pairs.items():
            logit += table[value[a], value[b]]
        probability = 1 / (1 + np.exp(-logit))
        label = (rng.random(n) < probability).astype(np.int8)

        time = START_MS + (first + np.arange(n)) * 1000 + rng.integers(0, 1000, n)
        numbers = [
            pa.array(price.astype(np.float32), mask=no_price),
            pa.array(age.astype(np.float32)),
            pa.array(dwell.astype(np.float32), mask=no_dwell),
            pa.array(noise.astype(np.float32)),
        ]
        columns = [
            pa.array(time).cast(pa.timestamp("ms")),
            user,
            *numbers,
            *(_text(name, value[name]) for name in SIZES),
            _text("item", item),
            _lists(_text("tag", tags), bag_sizes),
            _lists(_text("item", history), lengths),
            label,
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), probability

    def _items(
        self, rng: np.random.Generator, user: np.ndarray, n: int, *, taste: float
    ) -> np.ndarray:
        """Items, with chance ``taste`` of a kind that the user likes; within a kind Zipf-like."""
        liked = self.taste[user, rng.integers(0, 2, n)]
        kind = np.where(rng.random(n) < taste, liked, rng.integers(0, KINDS, n))
        return self.by_kind[kind, (rng.random(n) ** 2 * (ITEMS // KINDS)).astype(np.int64)]


def _zipf(size: int) -> np.ndarray:
    weight = 1.0 / (np.arange(size) + 3.0)
    return weight / weight.sum()


def _centred_pair(rng: np.random.Generator, pa_: np.ndarray, pb: np.ndarray) -> np.ndarray:
    """(A, B) rank-2 table of standard deviation 0.7 that has mean 0 along each column's values,
    under the popularities of both columns."""
    left, right = rng.normal(size=(len(pa_), 2)), rng.normal(size=(len(pb), 2))
    left, right = left - pa_ @ left, right - pb @ right
    table = left @ right.T
    return table * (0.7 / np.sqrt(pa_ @ table**2 @ pb))


def _mean_by_row(owner: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.bincount(owner, values, minlength=len(lengths)) / np.maximum(lengths, 1)


def _text(name: str, values: np.ndarray) -> pa.Array:
    words = [f"{name}_{value}" for value in range(int(values.max(initial=-1)) + 1)]
    return pa.array(words, pa.string()).take(pa.array(values))


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.Array:
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
