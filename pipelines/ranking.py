"""The task of item-sequence models: the next item, among all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from torch import nn

from pipelines.prepare import PreparedSequences
from recsys.bundle import VerifyReport
from recsys.bundle.topk import export_top_k
from recsys.config import SequenceRunConfig
from recsys.data.item_space import special_ids
from recsys.embeddings.post_training import Kind, quantise_layers
from recsys.models.sequence.items import ItemModel
from recsys.training import plots, ranking_plots
from recsys.training.phase import Phase
from recsys.training.position import History
from recsys.training.prediction import Rows
from recsys.training.ranking import ranking_metrics, target_ranks
from recsys.training.tracking import Tracker
from recsys.types import Metrics


class RankingTask:
    """A `pipelines.task.Task`."""

    def __init__(self, config: SequenceRunConfig, prepared: PreparedSequences) -> None:
        self._config = config
        self.prepared = prepared
        self.assembly = prepared.assembly
        self._measured: dict[str, Metrics] = {}

    @property
    def tags(self) -> dict[str, str]:
        config = self._config
        model, embedding = config.model.name, config.embedding.method
        return {"model": model, "embedding": embedding, "task": "top_k"}

    def phases(self) -> Sequence[Phase] | None:
        return self.assembly.model.phases(self._config.train)

    def evaluate(self, model: nn.Module, rows: Rows, sampled: tuple[str, ...] = ()) -> Metrics:
        """The metrics of the full ranking, and those among items of the ``sampled`` kinds."""
        assert isinstance(model, ItemModel), model
        return ranking_metrics(
            model,
            rows,
            **{**_options(self._config), "device": next(model.parameters()).device},
            cutoffs=self._config.ranking.cutoffs,
            sampled=sampled,
            popularity=self.prepared.features.fields[0].counts,
            seed=self._config.seed,
        )

    def measure(self, tracker: Tracker) -> dict[str, Metrics]:
        metrics = {}
        for split in ("valid", "test"):
            rows = getattr(self.prepared, split)
            metrics[split] = self.evaluate(self.assembly.model, rows, self._config.ranking.sampled)
            self._log_ranks(tracker, split, rows)
        self._measured = metrics
        return metrics

    def curves(self, history: History, title: str) -> Figure:
        k, monitor = self._config.ranking.shown, self._config.train.monitor
        keys = dict.fromkeys([f"ndcg@{k}", f"recall@{k}", monitor])
        lines = [(key, f"valid {key}") for key in keys]
        losses = [("train_loss", "train loss")]
        return plots.curves(history, title, losses=losses, metrics=lines, y="Full ranking")

    def finalise(self, tracker: Tracker) -> dict[str, Any]:
        self.assembly = self.assembly.finalise()
        kind = self._config.export.quantise
        return {} if kind is None else {"quantised": self._quantise(kind)}

    def _quantise(self, kind: Kind) -> dict[str, Any]:
        """Puts tables of ``kind`` into the model and ranks valid and test again.

        Returns ``{kind, stored_bytes: {before, after}, METRIC: {split: {before, after}}}``.
        """
        metric = f"ndcg@{self._config.ranking.shown}"
        sizes = {"before": self.assembly.memory().stored_bytes}
        quantise_layers(self.assembly.model, kind)
        sizes["after"] = self.assembly.memory().stored_bytes
        again = {}
        for split, live in self._measured.items():
            served = self.evaluate(self.assembly.model, getattr(self.prepared, split))
            again[split] = {"before": live[metric], "after": served[metric]}
        return {"kind": kind, "stored_bytes": sizes, metric: again}

    def export(self, out: Path, rows: pa.Table, manifest: Mapping[str, Any]) -> VerifyReport:
        features = self.prepared.features
        return export_top_k(
            self.assembly.model,
            self.assembly.encoder,
            features.inputs,
            out,
            items=self.prepared.items,
            k=max(self._config.ranking.cutoffs),
            filter_seen=self._config.ranking.filter_seen,
            manifest=manifest,
            features=features,
            rows=rows,
            tolerance=self._config.export.tolerance,
        )

    def _log_ranks(self, tracker: Tracker, split: str, rows: Rows) -> None:
        """Pictures of where the targets were ranked."""
        config, features = self._config, self.prepared.features
        ranks = target_ranks(self.assembly.model, rows, **_options(config))
        size = config.train.batch_size
        targets = np.concatenate([target.label.numpy() for _, target in rows.batches(size)])
        counts = features.fields[0].counts
        assert counts is not None, "item fields count their ids"
        counts = counts.copy()
        counts[: special_ids(features)] = 0
        title, k = f"{config.name}, {split}", config.ranking.shown
        for name, figure in ranking_plots.of_ranks(ranks, targets, counts, title, k).items():
            tracker.log_figure(figure, f"plots/{split}/{name}.png")


def _options(config: SequenceRunConfig) -> dict[str, Any]:
    return {
        "batch_size": config.train.batch_size,
        "device": torch.device(config.train.device),
        "filter_seen": config.ranking.filter_seen,
    }
