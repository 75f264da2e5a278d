"""The feature encoder: raw `Batch` -> encoded `Batch`, one scriptable module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import List

import torch
from torch import Tensor, nn

from recsys.features.base import InputKind
from recsys.types import Batch, FieldSpec


@dataclass(frozen=True)
class Route:
    """From raw input to field: ``module`` maps column ``source`` of ``Batch.ids``,
    ``Batch.floats`` or entry ``source`` of ``Batch.lists``, as ``reads`` says."""

    spec: FieldSpec
    module: nn.Module
    reads: InputKind
    source: int


class FeatureEncoder(nn.Module):
    """Applies every feature's module to its raw column.

    ``id_features[c]``: raw column (N,) -> (N,) int64, column c of the encoded ids; its raw column
    is ``Batch.ids[:, s]`` for ``s = id_sources[c] >= 0``, else ``Batch.floats[:, -1 - s]``.
    ``float_features[k]``: raw floats (N,) float64, column ``float_sources[k]`` -> (N, width)
    float32; their columns side by side are the encoded floats. ``list_features[f]``: (N,) int64
    -> (N,) int64, for the elements of ``Batch.lists[f]``.
    """

    def __init__(self, *, routes: Sequence[Route]) -> None:
        super().__init__()
        ids = [r for r in routes if r.spec.kind == "categorical"]
        floats = [r for r in routes if r.spec.kind == "numeric"]
        lists = [r for r in routes if r.spec.is_list]
        assert [r.source for r in lists] == list(range(len(lists))), "one raw list per list field"
        self.id_features = nn.ModuleList(r.module for r in ids)
        self.float_features = nn.ModuleList(r.module for r in floats)
        self.list_features = nn.ModuleList(r.module for r in lists)
        self.id_sources: List[int] = [r.source if r.reads == "id" else -1 - r.source for r in ids]
        self.float_sources: List[int] = [r.source for r in floats]

    def forward(self, raw: Batch) -> Batch:
        rows = raw.ids.shape[0]
        ids: List[Tensor] = []
        for c, feature in enumerate(self.id_features):
            source = self.id_sources[c]
            if source >= 0:
                ids.append(feature(raw.ids[:, source].contiguous()))  # (B,)
            else:
                ids.append(feature(raw.floats[:, -1 - source].contiguous()))  # (B,)
        floats: List[Tensor] = [torch.zeros(rows, 0, device=raw.floats.device)]
        for k, feature in enumerate(self.float_features):
            floats.append(feature(raw.floats[:, self.float_sources[k]].contiguous()))  # (B, width)
        lists: List[Tensor] = []
        for f, feature in enumerate(self.list_features):
            raw_list = raw.lists[f]  # (B, L)
            lists.append(feature(raw_list.reshape(-1)).reshape(raw_list.shape))
        encoded = torch.stack(ids, 1) if len(ids) > 0 else raw.ids[:, :0]  # (B, C)
        return Batch(encoded, torch.cat(floats, 1), lists, raw.lengths)
