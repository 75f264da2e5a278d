"""Small sequence models over any table method, and batches of histories."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from recsys.build_sequence import sequence_model
from recsys.embeddings.full import FullConfig
from recsys.features.item_text import ItemText
from recsys.models.sequence import SEQUENCE_MODELS
from recsys.settings import TrainConfig
from recsys.types import Batch, FieldSpec, Target

ITEMS, SPECIALS, LENGTH = 20, 2, 8


def model_of(
    config: Any,
    *,
    embedding: Any = None,
    num_ids: int = ITEMS + SPECIALS,
    length: int = LENGTH,
    dim: int = 8,
    seed: int = 0,
    **train: Any,
) -> tuple[Any, TrainConfig]:
    """The model of a config over one sequence field, and the training settings of its tables."""
    torch.manual_seed(seed)
    settings = TrainConfig(**train)
    field = FieldSpec("history", "sequence", num_ids=num_ids, pooling="mean", max_length=length)
    model = sequence_model(
        config,
        field,
        embedding=embedding or FullConfig(method="full", embedding_dim=dim, init_std=0.3),
        train=settings,
        specials=SPECIALS,
        text=texts(num_ids) if SEQUENCE_MODELS[config.name].reads_text else None,
    )
    return model, settings


def texts(num_ids: int) -> ItemText:
    """Every item says ``title: word`` with a word of its own."""
    items = np.arange(num_ids - SPECIALS)
    pairs = np.stack([np.full(len(items), 2), 3 + items], 1)  # word 2 is "title"
    return ItemText(
        text=np.concatenate([np.zeros(SPECIALS, np.int64), 1 + items]),
        ends=2 * np.arange(1 + len(items)),
        tokens=pairs.ravel(),
        keys=np.tile([True, False], len(items)),
        pieces=np.zeros(2 * len(items), np.int64),
        counts=np.array([0, 0, len(items), *np.ones(len(items), np.int64)]),
    )


def histories(rows: list[list[int]], padding: int = 0) -> Batch:
    """Lists of encoded ids, padded on the right with ``padding``."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), padding, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    lengths = torch.tensor([[len(row)] for row in rows], dtype=torch.int64).view(-1, 1)
    none = torch.zeros(len(rows), 0)
    return Batch(none.long(), none, [ids], lengths)


def target(batch: Batch) -> Target:
    """What `SequenceData` gives with training rows."""
    count = batch.lengths.size(0)
    return Target(torch.zeros(count).long(), torch.ones(count), torch.arange(count))


def scores(model: nn.Module, batch: Batch) -> torch.Tensor:
    """(B, V): of the next item, by encoded id."""
    found: torch.Tensor = model(batch) @ model.item_vectors().T + model.item_bias()  # type: ignore[operator]
    return found
