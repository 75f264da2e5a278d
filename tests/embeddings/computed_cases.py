"""What the tests of computed tables share: Criteo's sizes, and a planted log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import criteo
import torch
from embedding_cases import build, config
from torch.nn import functional as F

from recsys.embeddings import EMBEDDINGS
from recsys.embeddings.computed import ComputedFields
from recsys.training.metrics import auc
from recsys.types import Batch, FieldSpec

fields = tuple(FieldSpec(name, "categorical", num_ids=400) for name in "ab")


def plan(method: str, budget: float) -> ComputedFields:
    """The plan for the Criteo fields, one layer of width 16."""
    made = config({"method": method, "embedding_dim": 16, "budget": budget})
    solved = EMBEDDINGS[method](made, criteo.FIELDS, {"main": criteo.WIDTH})
    assert isinstance(solved, ComputedFields)
    return solved


def learned_auc(tree: dict[str, Any], over: Sequence[FieldSpec], steps: int = 250) -> float:
    """Two fields of 400 ids with independent effects, a linear reader per field; Bayes is .87."""
    id_map, layers = build({"embedding_dim": 8, **tree}, tuple(over), {"main": 8})
    layer = layers["main"]
    made = torch.Generator().manual_seed(0)
    effects = 1.5 * torch.randn(2, 400, generator=made)

    def draw(n: int) -> tuple[Batch, torch.Tensor]:
        ids = torch.randint(0, 400, (n, 2), generator=made)
        logit = effects[0, ids[:, 0]] + effects[1, ids[:, 1]]
        label = (torch.rand(n, generator=made) < logit.sigmoid()).float()
        none = torch.zeros(n, 0)
        return id_map(Batch(ids, none, [], none.long())), label

    head = torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.01)
    for _ in range(steps):
        batch, label = draw(2048)
        logit = head(layer(batch).flatten(1)).squeeze(1)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logit, label).backward()
        optimizer.step()
    batch, label = draw(20_000)
    with torch.no_grad():
        score = head(layer(batch).flatten(1)).squeeze(1)
    return auc(label.numpy(), score.numpy())
