"""One exact row per id: the plain embedding table.

All fields of a layer lie in one table, field after field. ``budget`` gives the plain small-width
baseline: the widest vectors, up to ``embedding_dim``, that fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from torch import nn

from recsys.embeddings.budget import (
    FLOAT_BYTES,
    budget_bytes,
    dense_ids,
    fixed_bytes,
    numeric_words,
    owner_name,
    owners,
    refuse,
)
from recsys.embeddings.combine import OneRow
from recsys.embeddings.id_map import RangeRows
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.types import FieldSpec


class FullConfig(TableConfig):
    """Tables start from N(0, init_std^2).

    With a ``budget``, ``embedding_dim`` is an upper limit: layers of that width get the largest
    width that fits, others keep theirs.
    """

    method: Literal["full"]


class Full(TableMethod):
    """Row of id ``x`` of field ``f``: ``offset_f + x``.

    Errors: `InputError` for a field with open ids, or a budget below one float per id and layer.
    """

    Config: ClassVar[type[TableConfig]] = FullConfig
    config: FullConfig

    def __init__(
        self, config: FullConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._offsets: dict[str, int] = {}
        self._rows = 0
        for name, owner in owners(fields).items():
            self._offsets[name] = self._rows
            self._rows += dense_ids(owner, method=config.method)
        if config.budget is not None:
            self.dims = self._fitted(budget_bytes(config.budget, fields, dims))

    def _fitted(self, budget: int) -> dict[str, int]:
        wide = [name for name, dim in self.dims.items() if dim == self.config.embedding_dim]
        slots = sum(self._counts())
        column = FLOAT_BYTES * (self._rows + numeric_words(self.fields))
        narrow = sum(self.dims.values()) - self.config.embedding_dim * len(wide)
        index = fixed_bytes(self.fields, dict.fromkeys(self.dims, 0), slots=slots)
        spent = index + column * narrow
        least = spent + column * len(wide)
        if budget < least:
            raise refuse(budget, least, "embedding.method full")
        width = (budget - spent) // (column * max(1, len(wide)))
        width = min(width, self.config.embedding_dim)
        return {name: width if name in wide else dim for name, dim in self.dims.items()}

    def solution(self) -> dict[str, Any]:
        return {"embedding_dim": max(self.dims.values()), "rows": self._rows}

    def slots(self, f: int) -> tuple[int, ...]:
        return () if self.fields[f].kind == "numeric" else (0,)

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        if self._rows == 0:
            return ()
        fill = partial(nn.init.normal_, std=self.config.init_std)
        return (TableSpec("full", self._rows, dim, fill),)

    def row_map(self) -> nn.Module:
        looked_up = [field for field in self.fields if field.kind != "numeric"]
        return RangeRows(
            counts=self._counts(),
            singles=self._singles(),
            lows=[0] * len(looked_up),
            highs=[field.num_ids or 0 for field in looked_up],
            offsets=[self._offsets[owner_name(field)] for field in looked_up],
            misses=[0] * len(looked_up),
        )

    def combine(self, dim: int) -> nn.Module:
        return OneRow()
