"""A scriptable stand-in for an embedding layer, and batches for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys.models import MODELS
from recsys.types import Batch, FieldSpec

VALUES = 10


class Lookup(nn.Module):
    """``value * vector`` for the first ``numerics`` fields, a row per id for the others."""

    def __init__(self, numerics: int, categoricals: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.vectors = nn.Parameter(torch.randn(numerics, dim) * 0.5)
        self.rows = nn.Parameter(torch.randn(categoricals * VALUES, dim) * 0.5)
        self.register_buffer("starts", torch.arange(categoricals) * VALUES)

    def forward(self, batch: Batch) -> Tensor:
        numeric = batch.floats.unsqueeze(2) * self.vectors  # (B, N, D)
        rows = nn.functional.embedding(batch.ids + self.starts, self.rows)  # (B, C, D)
        return torch.cat([numeric, rows], dim=1)  # (B, F, D)


def fields(numerics: int, categoricals: int) -> list[FieldSpec]:
    numeric = [FieldSpec(name=f"x{i}", kind="numeric") for i in range(numerics)]
    return numeric + [
        FieldSpec(name=f"c{i}", kind="categorical", num_ids=VALUES) for i in range(categoricals)
    ]


def build(
    config: Any, *, numerics: int = 2, categoricals: int = 3, dim: int = 4, seed: int = 0
) -> nn.Module:
    """A model on lookup doubles, every weight (biases too) away from zero."""
    torch.manual_seed(seed)
    kind = MODELS[config.name]
    widths = kind.tables(config, dim)
    layers = {name: Lookup(numerics, categoricals, width) for name, width in widths.items()}
    return kind(config, fields(numerics, categoricals), layers)


def batch(rows: int, *, numerics: int = 2, categoricals: int = 3, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randint(0, VALUES, (rows, categoricals), generator=generator),
        torch.randn(rows, numerics, generator=generator),
        [],
        torch.zeros(rows, 0, dtype=torch.int64),
    )


def take(rows: Batch, which: Sequence[int]) -> Batch:
    index = torch.tensor(list(which))
    return Batch(rows.ids[index], rows.floats[index], [], rows.lengths[index])
