"""FuxiCTR 2.3.10 as a yardstick: its FeatureProcessor, its Parquet loader, its training loop.

The wheel ships the library's core without the zoo's AutoInt file. AutoInt is composed here from
its `BaseModel`, `FeatureEmbedding`, `MLP_Block` and `ScaledDotProductAttention` with the
arithmetic of the zoo's model (linear Q, K, V without bias, a projected residual where the width
changes, ReLU; a linear head on the flattened fields plus the logit of an MLP), so that the
library's embedding, optimiser, regulariser, gradient clipping and loop are what is timed.

- ingest: `build_dataset` on the raw Parquet log: StandardScaler numerics, every id kept.
- train: `BaseModel.fit` over its `RankDataLoader`, timed from the end of the warm-up.
- predict: `BaseModel.predict` over the encoded score rows.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pyarrow.parquet as pq
import torch
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor, build_dataset
from fuxictr.preprocess.build_dataset import init_ray
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block, ScaledDotProductAttention
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor, nn

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

DATASET = "encoded"
PACKAGES = ("fuxictr", "ray", "polars", "pyarrow", "numpy")


class SelfAttention(nn.Module):
    """Multi-head self-attention over fields: (B, F, width_in) -> (B, F, width)."""

    def __init__(self, width_in: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width_in, width, bias=False)
        self.key = nn.Linear(width_in, width, bias=False)
        self.value = nn.Linear(width_in, width, bias=False)
        self.residual = (
            nn.Linear(width_in, width, bias=False) if width_in != width else nn.Identity()
        )
        self.attention = ScaledDotProductAttention()

    def forward(self, fields: Tensor) -> Tensor:
        """Fields (B, F, width_in) -> (B, F, width)."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, F, width / H)

        mixed, _ = self.attention(
            split(self.query(fields)), split(self.key(fields)), split(self.value(fields))
        )
        joined = mixed.transpose(1, 2).flatten(2)  # (B, F, width)
        return (joined + self.residual(fields)).relu()


class AutoInt(BaseModel):
    """AutoInt+ on the library's own parts; keeps the loss of every step."""

    def __init__(self, feature_map: FeatureMap, work: Path) -> None:
        super().__init__(
            feature_map,
            model_id="AutoInt",
            model_root=str(work / "checkpoints"),
            metrics=["logloss", "AUC"],
            verbose=0,
        )
        fields = feature_map.num_fields
        self.embedding_layer = FeatureEmbedding(feature_map, EMBEDDING_DIM)
        widths = [EMBEDDING_DIM, *[ATTENTION_DIM] * ATTENTION_LAYERS]
        self.self_attention = nn.Sequential(
            *(SelfAttention(a, b, HEADS) for a, b in pairwise(widths))
        )
        self.fc = nn.Linear(fields * ATTENTION_DIM, 1)
        self.dnn = MLP_Block(
            input_dim=fields * EMBEDDING_DIM,
            output_dim=1,
            hidden_units=list(HIDDEN_UNITS),
            hidden_activations="ReLU",
        )
        self.losses: list[float] = []
        self.finished = 0.0
        self.compile("adam", "binary_crossentropy", LEARNING_RATE)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Batch of encoded columns (B,) -> probabilities (B, 1)."""
        fields = self.embedding_layer(self.get_inputs(inputs))  # (B, F, D)
        logits = self.fc(self.self_attention(fields).flatten(1)) + self.dnn(fields.flatten(1))
        return {"y_pred": self.output_activation(logits)}

    def train_step(self, batch_data: dict[str, Tensor]) -> Tensor:
        """The library's step; its loss is kept for the report."""
        loss = super().train_step(batch_data)
        self.losses.append(loss.item())  # train_epoch calls item() again: a copy, not a wait
        return loss

    def eval_step(self) -> None:
        """Called by the loop after the last step: stops the clock, writes what fit reloads."""
        self.finished = time.perf_counter()
        Path(self.checkpoint).parent.mkdir(parents=True, exist_ok=True)
        self.save_weights(self.checkpoint)


def ingest(job: Job) -> None:
    """Raw Parquet -> fitted processor and one encoded Parquet file."""
    numeric, text = columns(job.log)
    specs: list[dict[str, Any]] = [
        {
            "name": numeric,
            "type": "numeric",
            "dtype": "float",
            "active": True,
            "normalizer": "StandardScaler",
        },
        {"name": text, "type": "categorical", "dtype": "str", "active": True},
    ]
    processor = FeatureProcessor(
        feature_cols=specs,
        label_col={"name": LABEL, "dtype": "float"},
        dataset_id=DATASET,
        data_root=str(job.work),
    )
    shutil.rmtree(job.work / DATASET, ignore_errors=True)
    init_ray()  # Ray's start-up is not charged
    _, seconds = timed(
        lambda: build_dataset(
            processor, train_data=str(job.log), data_format="parquet", min_categr_count=1
        )
    )
    # The score rows are the head of the log; their encoded form is cut out after the clock stops.
    encoded = pq.ParquetFile(job.work / DATASET / "train.parquet")
    head = next(encoded.iter_batches(batch_size=num_rows(job.score_file)))
    with pq.ParquetWriter(job.work / DATASET / "score.parquet", head.schema) as writer:
        writer.write_batch(head)
    report(
        job,
        system="fuxictr",
        rows=num_rows(job.log),
        seconds=seconds,
        packages=PACKAGES,
        ids=sum(
            spec["vocab_size"]
            for spec in processor.feature_map.features.values()
            if spec["type"] == "categorical"
        ),
    )


def _model(job: Job) -> AutoInt:
    seed_everything(SEED)
    torch.set_num_threads(job.threads)
    feature_map = FeatureMap(DATASET, str(job.work / DATASET))
    feature_map.load(str(job.work / DATASET / "feature_map.json"), {"embedding_dim": EMBEDDING_DIM})
    return AutoInt(feature_map, job.work)


def train(job: Job) -> None:
    """A fixed number of steps of `BaseModel.fit`."""
    model = _model(job)
    loader, _ = RankDataLoader(
        model.feature_map,
        stage="train",
        train_data=str(job.work / DATASET / "train.parquet"),
        batch_size=job.batch_size,
        shuffle=True,
        data_format="parquet",
    )
    batches = TimedBatches(loader, warmup=job.warmup, steps=job.steps)
    model.fit(batches, epochs=1)
    report(
        job,
        system="fuxictr",
        rows=job.train_rows,
        seconds=model.finished - batches.started,
        packages=PACKAGES,
        loader_seconds=round(batches.waited, 3),
        loss=mean_loss(model.losses, job),
        parameters=parameter_counts(model, lambda name: not name.startswith("embedding_layer")),
        precision="fp32",
    )


def predict(job: Job) -> None:
    """Encoded score rows -> probabilities."""
    model = _model(job)
    loader = RankDataLoader(
        model.feature_map,
        stage="test",
        test_data=str(job.work / DATASET / "score.parquet"),
        batch_size=job.batch_size,
        data_format="parquet",
    )
    next(iter(loader))  # Ray's worker start-up is not charged
    scores, seconds = timed(lambda: model.predict(loader))
    assert len(scores) == num_rows(job.score_file)
    report(
        job,
        system="fuxictr",
        rows=len(scores),
        seconds=seconds,
        packages=PACKAGES,
        mean_score=float(scores.mean()),
        precision="fp32",
    )


if __name__ == "__main__":
    logging.disable(logging.INFO)
    task = parse_job()
    {"ingest": ingest, "train": train, "predict": predict}[task.stage](task)
