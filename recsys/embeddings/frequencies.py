"""How often the rows of tables were used in training, for penalties that weigh rare rows more."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys.embeddings.layer import EmbeddingLayer
from recsys.types import InputError


def row_frequencies(layer: EmbeddingLayer) -> list[Tensor]:
    """Training frequency of each row of each table of ``layer``, (rows,) float32.

    The sum over all ids of all fields whose lookup meets the row: ids that share a row share its
    frequency. Errors: `InputError` for open ids, which nothing has counted.
    """
    totals = [
        torch.zeros(store.weight.size(0), dtype=torch.float64) for store in layer.float_tables
    ]
    for f, field in enumerate(layer.fields):
        if field.kind in ("numeric", "generated") or field.shares is not None:
            continue  # counts of a shared table include those of its other columns
        if field.counts is None:
            raise InputError(
                f"features.{field.name}: open ids are not counted, and train.embedding_l2.mode "
                "batch_aware needs their frequencies; set buckets, use encoding vocabulary, or "
                "mode touched_rows"
            )
        ids = torch.arange(len(field.counts), device=layer.order.device)
        rows = layer.row_map(ids.unsqueeze(-1), f).long()  # (V, T)
        counts = torch.from_numpy(field.counts).double()  # (V,)
        for t, table in enumerate(layer.slots(f)):
            entries = layer.tables[table].rows_of(rows[:, t]).cpu()  # blocks may share rows
            totals[table].index_add_(0, entries, counts)
    return [total.float() for total in totals]
