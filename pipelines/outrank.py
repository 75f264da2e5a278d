"""Features by what they say about the label, before any training."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Group
from rich.table import Table

from pipelines.sample import spread_rows
from recsys.config import AnyRunConfig, RunConfig, SequenceRunConfig
from recsys.data import splits
from recsys.data.targets import labels, target_columns, weights
from recsys.features.fit import type_families
from recsys.features.outrank import Column, OutRank
from recsys.features.relevance import Array, binned, codes_of
from recsys.features.state import field_of
from recsys.training.progress import Reporter, SilentReporter
from recsys.types import InputError
from serving.encode import NULL_ID, Batch, InputField, encode
from serving.parquet import Source

Result = dict[str, Any]

SHOWN = 20
"""Crosses in the table of the terminal."""

SHUFFLES = 24
"""Of labels, over all batches, to learn what chance gives."""


def run(
    config: AnyRunConfig,
    *,
    rows: int = 200_000,
    batch_rows: int = 16_384,
    crosses: int = 0,
    seed: int = 0,
    root: str = ".",
    reporter: Reporter | None = None,
) -> Result:
    """Ranks the features of ``config`` on ``rows`` rows spread over its train split.

    See `recsys.features.outrank`. The rows are put in random order and cut into batches of
    ``batch_rows`` (the last one is as small as half of that, or the only one); where rows have
    weights, as many are drawn as the weights leave, in proportion to them. ``crosses``: pairs of
    features scored in each batch. Memory: the rows.

    Returns ``{rows, batches, weight, label_entropy, features: [{feature, score, low, high, floor,
    share, values, coverage, noise}], crosses: [{features, score, gain, redundancy, noise}], order,
    seconds}``: scores in nats, the best first; ``share`` of the label's entropy; ``values``:
    distinct ones among the rows; ``noise``: what chance may give, at most ``floor``. ``order``:
    3MR. Errors: `InputError` for what is no label or no column, and for rows of one label.
    """
    started = time.perf_counter()
    if isinstance(config, SequenceRunConfig):
        raise InputError("recsys outrank: item sequences have no label; give a config of clicks")
    source = splits(config.data, root).train
    families = type_families(config.features, source)
    fields = [field_of(name, feature, families[name]) for name, feature in config.features.items()]
    reporter = reporter or SilentReporter()
    table, target = _sample(source, config, fields, rows, seed, reporter)
    if len(target) == 0:
        raise InputError(f"{source.files[0]}: column {config.data.weight!r} is 0 in all rows read")
    batches = _cut(len(target), batch_rows)
    shuffles = max(2, -(-SHUFFLES // len(batches)))
    names = [field.name for field in fields]
    found = OutRank(names, pairs=crosses, shuffles=shuffles, seed=seed)
    seen: dict[str, Array] = {}
    plain = sum(field.kind != "ids" for field in fields)
    pairs = min(crosses, math.comb(plain, 2))
    with reporter.bar("rank", len(batches) * (1 + pairs)) as bar:
        for part in batches:
            raw = encode(table.slice(part.start, part.stop - part.start), fields)
            found.add(_columns(config, fields, raw, seen), target[part], lambda: bar.advance(1))
            bar.advance(1)
    if found.label_entropy == 0:
        raise InputError(
            f"{source.files[0]}: all {len(target):,} rows that were read have one label, which "
            "says nothing of any feature; give rows of both"
        )
    coverage = found.coverage()
    return {
        "rows": sum(part.stop - part.start for part in batches),
        "batches": len(batches),
        "weight": config.data.weight,
        "label_entropy": found.label_entropy,
        "features": [
            {
                "feature": name,
                "score": score.value,
                "low": score.low,
                "high": score.high,
                "floor": score.floor,
                "share": score.value / found.label_entropy,
                "values": len(seen[name]),
                "coverage": coverage[name],
                "noise": score.value <= score.floor,
            }
            for name, score in found.scores().items()
        ],
        "crosses": [
            {
                "features": list(cross.pair),
                "score": cross.score.value,
                "gain": cross.gain,
                "redundancy": cross.redundancy,
                "noise": cross.gain <= cross.score.floor,
            }
            for cross in found.crosses()
        ],
        "order": found.three_mr(),
        "seconds": time.perf_counter() - started,
    }


def render(result: Result) -> Group:
    """Features and the crosses that gain most."""
    table = Table(title=f"{result['rows']:,} rows in {result['batches']} batches", title_style="")
    table.add_column("feature")
    for name in ("score", "quartiles", "of the label", "values", "known"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in result["features"]:
        table.add_row(
            row["feature"],
            f"{row['score']:.5f}",
            f"{row['low']:.5f} to {row['high']:.5f}",
            f"{row['share']:.2%}".replace("-0.00%", "0.00%"),
            f"{row['values']:,}",
            f"{row['coverage']:.1%}",
            "no more than noise" if row["noise"] else "",
        )
    parts: list[Any] = [
        table,
        "score: mutual information with the label in nats, less what chance gives such a column; "
        "noise: no more than chance may give it",
    ]
    if result["weight"] is not None:
        parts.append(f"rows were drawn in proportion to {result['weight']!r}")
    if result["crosses"]:
        gaining = [row for row in result["crosses"] if not row["noise"]][:SHOWN]
        pairs = Table(title="pairs that say more than both of their features", title_style="")
        pairs.add_column("pair")
        for name in ("score", "more than both", "about each other"):
            pairs.add_column(name, justify="right")
        for row in gaining:
            numbers = (f"{row[name]:.5f}" for name in ("score", "gain", "redundancy"))
            pairs.add_row(" x ".join(row["features"]), *numbers)
        parts.append(pairs if gaining else "no pair says more than both of its features")
        parts.append(f"in the order of 3MR: {', '.join(result['order'])}")
    return Group(*parts)


def _sample(
    source: Source,
    config: RunConfig,
    fields: list[InputField],
    count: int,
    seed: int,
    reporter: Reporter,
) -> tuple[pa.Table, Array]:
    """Rows in random order and their labels (int64)."""
    wanted = [*(field.column for field in fields), *target_columns(config.data)]
    rng = np.random.default_rng([seed, 1])
    parts, target, weight = [], [], []
    with reporter.bar("read", min(count, source.num_rows)) as bar:
        for first, rows, picks in spread_rows(source, list(dict.fromkeys(wanted)), count):
            parts.append(rows.take(pa.array(picks)))
            target.append(labels(rows, config.data, source, first)[picks].astype(np.int64))
            weight.append(weights(rows, config.data, source, first)[picks])
            bar.advance(len(picks))
    found, weighed = np.concatenate(target), np.concatenate(weight)
    kept = np.flatnonzero(rng.random(len(found)) * max(weighed.max(initial=0.0), 1e-30) < weighed)
    order = rng.permutation(kept)
    return pa.Table.from_batches(parts).take(pa.array(order)), found[order]


def _cut(rows: int, size: int) -> list[slice]:
    """Batches of ``size`` rows; the rest is one, too, from half of that on or if there is no
    other."""
    starts = [start for start in range(0, rows, size) if rows - start >= size / 2 or start == 0]
    return [slice(start, min(start + size, rows)) for start in starts]


def _columns(
    config: RunConfig, fields: list[InputField], raw: Batch, seen: dict[str, Array]
) -> dict[str, Column]:
    """The features of a batch; adds their values to ``seen``."""
    places = {"id": 0, "float": 0, "ids": 0}
    columns = {}
    for field in fields:
        place = places[field.kind]
        places[field.kind] += 1
        row = None
        if field.kind == "float":
            values = raw.floats[:, place].numpy()
            missing = np.isnan(values)
            codes = binned(values)
        else:
            if field.kind == "id":
                values = raw.ids[:, place].numpy()
            else:
                lengths = raw.lengths[:, place].numpy()
                valid = np.arange(raw.lists[place].shape[1]) < lengths[:, None]
                values, row = raw.lists[place].numpy()[valid], valid.nonzero()[0]
            missing = values == NULL_ID
            codes = codes_of(values)
        if config.features[field.name].type == "null_indicator":
            values = missing
            codes = codes_of(missing.astype(np.int64))
        known = len(np.unique(row[~missing])) if row is not None else int((~missing).sum())
        columns[field.name] = Column(codes, row, known)
        union = np.unique(values[~missing]) if values is not missing else np.unique(values)
        seen[field.name] = np.union1d(seen.get(field.name, union), union)
    return columns
