"""A planted task in which the rows of a table are what there is to learn."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from embedding_cases import build
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.settings import TrainConfig
from recsys.training.metrics import auc
from recsys.training.optimizers import build_optimizers
from recsys.types import Batch, FieldSpec

IDS, BATCH, STEPS = 2000, 1024, 600
FIELDS = (
    FieldSpec("a", "categorical", num_ids=IDS),
    FieldSpec("b", "categorical", num_ids=IDS),
)


def _log(count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Ids (count, 2), skewed, and clicks by hidden vectors of four numbers and hidden biases."""
    hidden = torch.Generator().manual_seed(3)
    vectors = torch.randn(2, IDS, 4, generator=hidden)
    biases = 0.5 * torch.randn(2, IDS, generator=hidden)
    ids = torch.from_numpy((IDS * rng.random((count, 2)) ** 2).astype(np.int64))
    a, b = ids.unbind(1)
    logits = 0.7 * (vectors[0][a] * vectors[1][b]).sum(1) + biases[0][a] + biases[1][b]
    clicks = rng.random(count) < torch.sigmoid(logits).numpy()
    return ids, torch.from_numpy(clicks.astype(np.float32))


def factorised(tree: dict[str, Any], seed: int, **train: Any) -> tuple[nn.ModuleDict, Any]:
    """A factorisation machine over both fields: its layers, trained, and what scores ids."""
    settings: dict[str, Any] = {"learning_rate": 0.01, "batch_size": BATCH, **train}
    tree = {"embedding_dim": 8, "init_std": 0.01, **tree}
    id_map, layers = build(tree, FIELDS, {"main": 8, "first": 1}, seed=seed, **settings)
    model = nn.ModuleDict(layers)
    optimizers = build_optimizers(model, TrainConfig(**settings))

    def logits(ids: Tensor) -> Tensor:
        none = torch.zeros(len(ids), 0)
        batch = id_map(Batch(ids, none, [], none.long()))
        a, b = model["main"](batch).unbind(1)
        return (a * b).sum(1) + model["first"](batch).sum((1, 2))

    rng = np.random.default_rng(seed)
    for _ in range(STEPS):
        ids, clicks = _log(BATCH, rng)
        optimizers.zero_grad()
        F.binary_cross_entropy_with_logits(logits(ids), clicks).backward()
        optimizers.step()
    return model.eval(), logits


def score(logits: Any) -> float:
    """AUC on 100,000 fresh rows."""
    ids, clicks = _log(100_000, np.random.default_rng(99))
    with torch.no_grad():
        return auc(clicks.numpy(), logits(ids).numpy())


def planted_auc(tree: dict[str, Any], seed: int) -> float:
    """AUC on fresh rows after training by Adam on touched rows."""
    return _planted_auc(tuple(tree.items()), seed)


@cache
def _planted_auc(items: tuple[tuple[str, Any], ...], seed: int) -> float:
    sparse = {"embedding_gradient": "sparse"} if dict(items)["method"] == "full" else {}
    return score(factorised(dict(items), seed, **sparse)[1])
