"""A log whose useful values are known: half of the values of every field say nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.embeddings import IdMap, build_embeddings, full
from recsys.models import MODELS
from recsys.selection import SELECTIONS
from recsys.selection.deeplight import DeepLightConfig
from recsys.selection.dsl import DslConfig
from recsys.selection.elements import ElementSelection
from recsys.selection.magnitude import MagnitudeConfig
from recsys.selection.optembed import OptEmbedConfig
from recsys.selection.optfs import OptFSConfig
from recsys.selection.rows import RowSelection
from recsys.settings import TrainConfig
from recsys.testing.rows import MemoryRows
from recsys.training.prediction import Rows
from recsys.training.trainer import Trainer, TrainResult
from recsys.types import FieldSpec

FIELDS, VALUES = 3, 40
CONFIGS = {
    "optfs": OptFSConfig,
    "optembed": OptEmbedConfig,
    "magnitude": MagnitudeConfig,
    "deeplight": DeepLightConfig,
    "dsl": DslConfig,
}
TRAIN = TrainConfig(
    batch_size=256,
    max_epochs=6,
    learning_rate=5e-3,
    patience=2,
    embedding_l2={"value": 1e-3},  # type: ignore[arg-type]
)


@cache
def useful() -> Tensor:
    """(FIELDS * VALUES,) bool by row of the table: whether the value says anything."""
    return torch.arange(FIELDS * VALUES) % 2 == 0


@cache
def log(count: int, seed: int) -> MemoryRows:
    """The logit is the sum of the effects of the useful values, +-1.5, and of one interaction of
    the first two fields; a useless value adds nothing."""
    effects = np.where(useful(), np.random.default_rng(0).choice([-1.5, 1.5], FIELDS * VALUES), 0.0)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VALUES, (count, FIELDS)) + VALUES * np.arange(FIELDS)
    own = effects[ids]
    logit = own.sum(1) + own[:, 0] * own[:, 1] / 1.5
    label = rng.random(count) < 1 / (1 + np.exp(-logit))
    return MemoryRows(ids=torch.from_numpy(ids), label=torch.from_numpy(label).float())


def fields() -> tuple[FieldSpec, ...]:
    return tuple(FieldSpec(f"f{i}", "categorical", num_ids=VALUES) for i in range(FIELDS))


@dataclass
class Run:
    """A model, perhaps wrapped, and what trains it."""

    model: nn.Module
    id_map: IdMap
    selection: RowSelection | ElementSelection | None
    trainer: Trainer
    result: TrainResult | None = None

    def fit(self, train: Rows | None = None) -> Run:
        phases = None if self.selection is None else self.selection.phases()
        rows = log(8000, 1) if train is None else train
        self.result = self.trainer.fit(rows, log(4000, 2), phases)
        return self

    def auc(self) -> float:
        return self.trainer.predict(log(8000, 3)).metrics()["auc"]

    def useful_kept(self) -> float:
        assert self.selection is not None
        return float(self.selection.kept()[0][useful()].float().mean())

    def useless_closed(self) -> float:
        assert self.selection is not None
        return 1 - float(self.selection.kept()[0][~useful()].float().mean())


def run(
    selection: dict[str, Any] | None = None,
    *,
    train: TrainConfig = TRAIN,
    out: Path | None = None,
    model: dict[str, Any] | None = None,
) -> Run:
    """A fresh model from seed 5; the log's ids are rows already."""
    torch.manual_seed(5)
    config = full.FullConfig(method="full", embedding_dim=6, init_std=1e-2)
    kind = MODELS["deepfm"]
    settings = kind.Config(**(model or {"hidden_units": (16,)}))
    id_map, layers = build_embeddings(config, fields(), kind.tables(settings, 6), train=train)
    net = kind(settings, fields(), layers)
    chosen = None
    if selection is not None:
        method = selection["method"]
        made = SELECTIONS[method](CONFIGS[method](**selection), list(layers.values()), train)
        assert isinstance(made, RowSelection | ElementSelection)
        chosen = made
    trainer = Trainer(model=net, config=train, seed=3, fingerprint="c", out=out)
    return Run(net, id_map, chosen, trainer)
