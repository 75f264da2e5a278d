"""Which feature the rows of tables belong to, for methods that decide feature by feature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.embeddings import EmbeddingLayer
from recsys.embeddings.id_map import HashRows
from recsys.types import InputError


@dataclass(frozen=True)
class RowOwners:
    """``names``: features that own rows (those that share another's are left out). ``owner[k]``
    (R_k,) int64: place in ``names`` of what looks up each row of table k, or -1 for rows that no id
    leads to. ``met[k]`` (R_k,) bool: rows that training rows lead to, as far as ids are counted."""

    names: tuple[str, ...]
    owner: tuple[Tensor, ...]
    met: tuple[Tensor, ...]

    def features(self, table: int) -> list[int]:
        """Places in ``names`` of the features with rows in ``table``."""
        return [int(f) for f in self.owner[table].unique() if f >= 0]


def row_owners(layer: EmbeddingLayer, method: str) -> RowOwners:
    """Owners of all rows of ``layer``, found by sending every id through its row map.

    Errors: `InputError` if two features share a row, or if open ids lead to rows that no range
    tells.
    """
    sizes = [store.weight.size(0) for store in layer.float_tables]
    owner = [torch.full((size,), -1) for size in sizes]
    met = [torch.zeros(size, dtype=torch.bool) for size in sizes]
    looked_up = [f for f, field in enumerate(layer.fields) if layer.slots(f)]
    names = tuple(layer.fields[f].name for f in looked_up if layer.fields[f].shares is None)
    for f in looked_up:
        field = layer.fields[f]
        mine = names.index(field.shares or field.name)
        for slot, table in enumerate(layer.slots(f)):
            rows = _rows(layer, f, slot)
            if layer.float_tables[table].padding >= 0:
                rows = rows[rows != layer.float_tables[table].padding]
            other = owner[table][rows]
            clash = (other >= 0) & (other != mine)
            if clash.any():
                raise InputError(
                    f"selection.method {method} decides feature by feature, but {field.name} and "
                    f"{names[int(other[clash][0])]} share rows of a table; use an "
                    "embedding.method that gives every feature its own rows, such as full or hash"
                )
            owner[table][rows] = mine
            if field.counts is None or field.num_ids is None:
                met[table][rows] = True
            else:
                ids = torch.from_numpy(field.counts > 0).nonzero()  # (V, 1)
                met[table][layer.row_map(ids, f)[:, slot].long()] = True
    return RowOwners(names, tuple(owner), tuple(met))


def _rows(layer: EmbeddingLayer, f: int, slot: int) -> Tensor:
    """Rows that lookup ``slot`` of field ``f`` can meet."""
    field, row_map = layer.fields[f], layer.row_map
    if field.num_ids is not None:
        ids = torch.arange(field.num_ids, device=layer.order.device).unsqueeze(1)
        return row_map(ids, f)[:, slot].long().cpu().unique()
    if not isinstance(row_map, HashRows):
        raise InputError(
            f"features.{field.name}: open ids lead to rows that only hashing bounds; use "
            "embedding.method hash, or encoding vocabulary"
        )
    start, _ = row_map.span(f)
    low, count = int(row_map.offset[start + slot]), int(row_map.modulus[start + slot])
    return torch.arange(low, low + count)
