"""The task of CTR models: a probability for every row."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure

from pipelines.prepare import Prepared
from recsys.bundle import VerifyReport, export_verified
from recsys.bundle.graph import ServingGraph
from recsys.bundle.verify import source_scores
from recsys.config import RunConfig
from recsys.embeddings.post_training import Kind, quantise_layers
from recsys.training import plots
from recsys.training.explanations import log_attention
from recsys.training.phase import Phase
from recsys.training.position import History
from recsys.training.prediction import Predictions, predict
from recsys.training.tracking import Tracker
from recsys.types import Metrics
from serving.parquet import write_parquet


class ClickTask:
    """A `pipelines.task.Task`."""

    evaluate = None

    def __init__(self, config: RunConfig, prepared: Prepared) -> None:
        self._config = config
        self.prepared = prepared
        self.assembly = prepared.assembly
        self._measured: dict[str, Predictions] = {}

    @property
    def tags(self) -> dict[str, str]:
        config = self._config
        tags: dict[str, str] = {"model": config.model.name, "embedding": config.embedding.method}
        if config.selection is not None:
            tags["selection"] = config.selection.method
        if config.data.weight is not None:
            tags["weight"] = config.data.weight
        return tags

    def phases(self) -> Sequence[Phase] | None:
        return self.assembly.phases()

    def measure(self, tracker: Tracker) -> dict[str, Metrics]:
        metrics = {}
        train = self._config.train
        for split in ("valid", "test"):
            rows = getattr(self.prepared, split)
            if rows is not None:
                predictions = predict(
                    self.assembly.model,
                    rows,
                    batch_size=train.batch_size,
                    device=torch.device(train.device),
                )
                metrics[split] = predictions.metrics()
                self._measured[split] = predictions
                _log_predictions(tracker, predictions, split, self._config.name)
        return metrics

    def curves(self, history: History, title: str) -> Figure:
        return plots.curves(history, title)

    def finalise(self, tracker: Tracker) -> dict[str, Any]:
        log_attention(
            tracker,
            self.assembly.model,
            self.prepared.valid or self.prepared.train,
            [field.name for field in self.prepared.features.fields],
            title=self._config.name,
            seed=self._config.seed,
        )
        selection = self.assembly.selection
        self.assembly = self.assembly.finalise()
        said = {} if selection is None else {"selection": selection.report()}
        if self._config.export.quantise is not None:
            said["quantised"] = self._quantise(self._config.export.quantise)
        return said

    def _quantise(self, kind: Kind) -> dict[str, Any]:
        """Puts tables of ``kind`` into the modules, and scores valid and test again, from raw rows.

        Returns ``{kind, stored_bytes: {before, after}, auc: {split: {before, after}}}``.
        """
        assembly, inputs = self.assembly, self.prepared.features.inputs
        before = assembly.memory().stored_bytes
        quantise_layers(assembly.model, kind)
        graph = ServingGraph(
            encoder=assembly.encoder, id_map=assembly.id_map, model=assembly.model
        ).eval()
        auc = {}
        for split, live in self._measured.items():
            scores = source_scores(graph, inputs, getattr(self.prepared.raw, split))
            served = replace(live, scores=scores)
            auc[split] = {"before": live.metrics()["auc"], "after": served.metrics()["auc"]}
        sizes = {"before": before, "after": assembly.memory().stored_bytes}
        return {"kind": kind, "stored_bytes": sizes, "auc": auc}

    def export(self, out: Path, rows: pa.Table, manifest: Mapping[str, Any]) -> VerifyReport:
        features = self.prepared.features
        if self._config.data.split is not None:
            manifest = {**manifest, "log": self.prepared.raw.train.content}
        return export_verified(
            self.assembly.model,
            self.assembly.encoder,
            self.assembly.id_map,
            features.inputs,
            out,
            manifest=manifest,
            features=features,
            rows=rows,
            tolerance=self._config.export.tolerance,
        )


def _log_predictions(tracker: Tracker, predictions: Predictions, split: str, title: str) -> None:
    """The scores of every row, for `recsys compare`, and the plots of them."""
    columns = {
        "row": np.arange(len(predictions.scores), dtype=np.int64),
        "label": predictions.labels,
        "score": predictions.scores,
    }
    if predictions.grouped:
        columns["group"] = predictions.groups
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
