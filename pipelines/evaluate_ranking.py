"""Ranking metrics of a bundle that recommends: by its own weights, in modules that are proved to
recommend what it does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from pipelines.prepare import sequence_files
from pipelines.sample import first_rows
from recsys.bundle.rebuild_topk import RebuiltTopK, rebuild_top_k
from recsys.data import Source, open_source
from recsys.data.sequence_data import sequence_data
from recsys.training.progress import Reporter
from recsys.training.ranking import ranking_metrics
from recsys.types import InputError, Metrics
from serving.bundle import Bundle

CHECKED_ROWS = 1000


def measure(
    bundle: Bundle, data: Sequence[str] | None, split: str, root: str, reporter: Reporter
) -> Metrics:
    """Metrics of the rows of ``data`` (the list of each history and its ``target``), or of
    ``split`` of the run's own log."""
    rebuilt = rebuild_top_k(bundle)
    with tempfile.TemporaryDirectory(prefix="recsys-evaluate-") as folder:
        if data:
            source = open_source(list(data), root=root)
        else:
            source = split_of(rebuilt, split, root, Path(folder), reporter)
        rebuilt.check(first_rows(source, rebuilt.features.inputs, CHECKED_ROWS))
        return judged(rebuilt, source, Path(folder), reporter)


def judged(rebuilt: RebuiltTopK, source: Source, folder: Path, reporter: Reporter) -> Metrics:
    """Metrics of the modules as they are, on the histories of ``source`` and their targets."""
    config, ranking = rebuilt.config, rebuilt.config.ranking
    with reporter.bar("encode", source.num_rows) as bar:
        rows = sequence_data(source, rebuilt.features, folder, windows=None, progress=bar.advance)
    return ranking_metrics(
        rebuilt.graph.model,
        rows,
        batch_size=config.train.batch_size,
        device=torch.device("cpu"),
        cutoffs=ranking.cutoffs,
        filter_seen=ranking.filter_seen,
        sampled=ranking.sampled,
        popularity=rebuilt.features.fields[0].counts,
        seed=config.seed,
    )


def split_of(
    rebuilt: RebuiltTopK, split: str, root: str, folder: Path, reporter: Reporter
) -> Source:
    """The sequences of one split of the run's log, written to ``folder``."""
    if split not in ("valid", "test"):
        raise InputError(f"--split {split!r}: must be valid or test, where there is a next item")
    return getattr(sequence_files(rebuilt.config, root, folder, reporter), split)
