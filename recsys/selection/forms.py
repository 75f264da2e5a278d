"""The serving form of tables with zeros: which rows stay, how each table is held, and its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recsys.embeddings.compact import compact, described
from recsys.embeddings.store import Store
from recsys.selection.packing import BASE_BYTES, smallest_dtype

Tables = Sequence[Sequence[Tensor]]
"""For each layer the weights (R_k, width) of each of its tables k."""


def open_rows(tables: Tables) -> list[Tensor]:
    """For each table (R,) bool, on the CPU: rows with a weight in any layer."""
    return [
        torch.stack([(weight != 0).any(1) for weight in same]).any(0).cpu()
        for same in zip(*tables, strict=True)
    ]


def packed(tables: Tables, kept: Sequence[Tensor] | None) -> list[list[Store]]:
    """The smallest stores of ``tables``; with ``kept``, of those rows and one row of zeros."""
    return [[_store(layer, k, kept) for k in range(len(layer))] for layer in tables]


def plan(tables: Tables, lookups: int) -> tuple[dict[str, Any], int]:
    """The form of least bytes, as plain JSON, and its bytes, the remap of rows included, of which
    ``lookups``, one position of each list, need their table's place.

    ``remapped``: rows without any weight leave all layers; ``kept_by_table``: how many stay;
    ``forms``: for each layer the form of each table.
    """
    kept = open_rows(tables)
    remap = smallest_dtype(max(int(mask.sum()) for mask in kept)).itemsize
    whole, fewer = packed(tables, None), packed(tables, kept)
    index = remap * sum(len(mask) for mask in kept) + BASE_BYTES * lookups
    sizes = [_bytes(whole), _bytes(fewer) + index]
    remapped = sizes[1] < sizes[0]
    forms = [[described(store) for store in row] for row in (fewer if remapped else whole)]
    counts = [int(mask.sum()) for mask in kept]
    return {"remapped": remapped, "kept_by_table": counts, "forms": forms}, min(sizes)


def _store(layer: Sequence[Tensor], table: int, kept: Sequence[Tensor] | None) -> Store:
    weight = layer[table].cpu()
    if kept is not None:
        weight = torch.cat([weight[kept[table]], weight.new_zeros(1, weight.size(1))])
    return compact(weight)


def _bytes(stores: Sequence[Sequence[Store]]) -> int:
    tensors = [t for row in stores for s in row for t in (*s.parameters(), *s.buffers())]
    return sum(t.numel() * t.element_size() for t in tensors)
