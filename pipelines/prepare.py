"""From a config to fitted features, modules and encoded splits: the start of every run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from recsys.build import Assembly, build
from recsys.build_sequence import SequenceAssembly, build_sequence
from recsys.config import AnyRunConfig, RunConfig, SequenceRunConfig
from recsys.data import EncodedData, Splits, encoded, open_source, splits
from recsys.data.interactions import SequenceFiles, write_sequences
from recsys.data.item_space import as_typed, fit_sequences, raw_items, special_ids, train_items
from recsys.data.sequence_data import SequenceData, Windows, sequence_data
from recsys.features import Features, fit
from recsys.features.item_text import with_text
from recsys.features.item_tokens import ItemTextConfig
from recsys.features.numeric import Numeric
from recsys.training.progress import Reporter
from serving.errors import InputError

Fit = Callable[..., Features]

BATCH_ROWS = 8192
LARGE = 1000.0
"""Numbers beyond this are not taken as they are without a word."""
REPEATS = 0.01
"""Share of targets that come again from which it is worth saying."""


@dataclass(frozen=True)
class Prepared:
    """Raw splits, fitted features, modules, and the encoded splits (``None`` where there is no
    such split)."""

    raw: Splits
    features: Features
    assembly: Assembly
    train: EncodedData
    valid: EncodedData | None
    test: EncodedData | None


def prepare(config: RunConfig, *, root: str, cache: Path, reporter: Reporter) -> Prepared:
    """Reads what an earlier run left in ``cache`` for the same data and rules, else makes it."""
    raw = splits(config.data, root)
    if config.data.split is None:
        _say_overlap(raw, reporter)
    features = fit_features(config, raw, cache, reporter)
    assembly = build(config, features)

    def encode(name: str) -> EncodedData | None:
        source = getattr(raw, name)
        if source is None:
            return None
        with reporter.bar(f"encode {name}", source.num_rows) as bar:
            return encoded(
                source, features, assembly.id_map, config.data, cache, progress=bar.advance
            )

    train = encode("train")
    assert train is not None
    return Prepared(raw, features, assembly, train, encode("valid"), encode("test"))


def _say_overlap(raw: Splits, reporter: Reporter) -> None:
    trained = {os.path.realpath(file) for file in raw.train.files}
    for name, part in (("valid", raw.valid), ("test", raw.test)):
        shared = [f for f in (part.files if part else ()) if os.path.realpath(f) in trained]
        if shared:
            reporter.say(
                f"data.{name} reads {shared[0]}, which data.train reads too: metrics of rows that "
                "were trained on say nothing of others"
            )


@dataclass(frozen=True)
class PreparedSequences:
    """`Prepared` of an item-sequence run. ``items``: the raw item of each encoded id, null for ids
    that are none."""

    raw: SequenceFiles
    features: Features
    items: pa.Array
    assembly: SequenceAssembly
    train: SequenceData
    valid: SequenceData
    test: SequenceData


def prepare_sequences(
    config: SequenceRunConfig, *, root: str, cache: Path, reporter: Reporter
) -> PreparedSequences:
    """As `prepare`; ``train`` holds the windows that the model asks for."""
    raw = sequence_files(config, root, cache, reporter)
    features, items = fit_items(config, raw, root, cache, reporter)
    assembly = build_sequence(config, features)

    def encode(name: str, windows: Windows | None = None) -> SequenceData:
        source = getattr(raw, name)
        with reporter.bar(f"encode {name}", source.num_rows) as bar:
            return sequence_data(source, features, cache, windows=windows, progress=bar.advance)

    train = encode("train", assembly.model.windows(config.max_length))
    valid, test, items = encode("valid"), encode("test"), raw_items(items, features)
    if config.ranking.filter_seen:
        _say_repeats(valid, reporter)
    return PreparedSequences(raw, features, items, assembly, train, valid, test)


def _say_repeats(valid: SequenceData, reporter: Reporter) -> None:
    """Errors: `InputError` if every target was in its history, of which nothing is recommended."""
    repeated = 0
    for batch, target in valid.batches(BATCH_ROWS):
        inside = torch.arange(batch.lists[0].shape[1]) < batch.lengths
        same = (batch.lists[0] == target.label[:, None]) & inside
        repeated += int(same.any(1).sum())
    if repeated == len(valid) > 0:
        raise InputError(
            "ranking.filter_seen: every valid target was in its user's history, so that none can "
            "be recommended; set ranking.filter_seen: false"
        )
    if repeated > REPEATS * len(valid):
        reporter.say(
            f"{repeated:,} of {len(valid):,} valid targets were in their user's history and cannot "
            "be recommended, as ranking.filter_seen says; set it to false where items come again"
        )


def fit_items(
    config: SequenceRunConfig, raw: SequenceFiles, root: str, cache: Path, reporter: Reporter
) -> tuple[Features, pa.Array]:
    """The features of a sequence run, with the items' text if its model reads it, and raw items."""
    features = fit_features(config, raw, cache, reporter, fit_sequences)
    items = train_items(raw.catalogue)
    if config.data.items is None:
        return features, items
    features, found = read_text(features, config.data.items, root, reporter)
    return features, as_typed(found, items.type)


def read_text(
    features: Features,
    config: ItemTextConfig,
    root: str,
    reporter: Reporter,
    *,
    keep_words: bool = False,
) -> tuple[Features, pa.Array]:
    """See `with_text`; says how many items have a text, and whether train knows them."""
    with reporter.bar("read items", None) as bar:
        features, items = with_text(
            features, config, root, keep_words=keep_words, progress=bar.advance
        )
    (field,) = features.fields
    assert field.counts is not None, "sequences are fitted with a closed id space"
    first = special_ids(features)
    known, new = len(field.counts) - first, int((field.counts[first:] == 0).sum())
    if not keep_words and not field.counts[first:].any():
        raise InputError(
            f"data.items {config.source}: no item of train has a row with text in it; check that "
            f"column {config.item!r} holds what the log calls an item"
        )
    reporter.say(
        f"items: {known:,} of {len(items):,} with text, {new:,} of them not in train; of train's "
        f"interactions {field.counts[1]:,} are with items without text"
    )
    return features, items


def sequence_files(
    config: SequenceRunConfig, root: str, cache: Path, reporter: Reporter
) -> SequenceFiles:
    """The log of ``config`` as sequences, or those that an earlier run left in ``cache``."""
    log = open_source(config.data.source, root)
    with reporter.bar("sequences", log.num_rows) as bar:
        return write_sequences(log, config.data, config.column, cache, progress=bar.advance)


def fit_features(
    config: AnyRunConfig,
    raw: Splits | SequenceFiles,
    cache: Path,
    reporter: Reporter,
    fit: Fit = fit,
) -> Features:
    """The features that ``fit`` finds in ``raw.train``, or those that an earlier run left in
    ``cache``; says which of them have a single value."""
    features = _fitted(config, raw, cache, reporter, fit)
    dead = [name for name in config.features if _is_constant(features, name)]
    if dead:
        reporter.say(f"features {', '.join(dead)}: no more than one value in train")
    for name, feature in config.features.items():
        furthest = np.abs(features.states.get(name, {}).get("bounds", [0.0])).max()
        if isinstance(feature, Numeric) and feature.raw and furthest > LARGE:
            reporter.say(
                f"features.{name}: values up to {furthest:.3g} are not scaled and drown others; "
                "set normalise: standard, transform: log1p or bins: 20"
            )
    return features


def _is_constant(features: Features, name: str) -> bool:
    state = features.states.get(name, {})
    if "counts" in state:
        return bool(np.count_nonzero(state["counts"]) <= 1)
    if "bounds" in state:
        low, high = state["bounds"]
        return not high > low
    return False


def _fitted(
    config: AnyRunConfig,
    raw: Splits | SequenceFiles,
    cache: Path,
    reporter: Reporter,
    fit: Fit,
) -> Features:
    rule = {name: feature.model_dump(mode="json") for name, feature in config.features.items()}
    key = json.dumps([raw.train.fingerprint, rule, fit.__name__])
    folder = cache / f"features-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    if folder.is_dir():
        try:
            return Features.load(folder)
        except InputError as error:  # damaged, or of another version: made anew, as all caches are
            reporter.say(f"{error}; fitting again")
            shutil.rmtree(folder)
    with reporter.bar("fit features", raw.train.num_rows) as bar:
        features = fit(config.features, raw.train, progress=bar.advance)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".features-") as temp:
        features.save(Path(temp) / "features")
        try:
            os.replace(Path(temp) / "features", folder)
        except OSError:  # a run beside this one was first: its state is the same
            if not folder.is_dir():
                raise
    return features
