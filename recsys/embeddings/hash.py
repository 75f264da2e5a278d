"""The hashing trick, field by field: every field folds its ids into rows of its own."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import nn

from recsys.embeddings.budget import owner_name
from recsys.embeddings.combine import OneRow
from recsys.embeddings.hashed_fields import HashedFields, HashedFieldsConfig
from recsys.embeddings.id_map import HashRows
from recsys.embeddings.method import TableSpec
from recsys.features.hashing import salt


class HashConfig(HashedFieldsConfig):
    """One hashed row per id. Tables start from N(0, init_std^2).

    Sizes by ``rows``, ``compression`` or ``budget``: see `HashedFieldsConfig`.
    """

    method: Literal["hash"]


class Hash(HashedFields):
    """Row of id ``x`` of field ``f``: ``offset_f + (mix(x + salt_f) mod m_f)``, one table a layer.

    Fields with as many rows as ids keep exact ones.
    """

    Config = HashConfig
    config: HashConfig

    def solution(self) -> dict[str, Any]:
        return {"rows": sum(self._sizes.values())}

    def slots(self, f: int) -> tuple[int, ...]:
        return () if self.fields[f].kind == "numeric" else (0,)

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        rows = sum(self._sizes.values())
        fill = partial(nn.init.normal_, std=self.config.init_std)
        return (TableSpec("hash", rows, dim, fill),) if rows else ()

    def row_map(self) -> nn.Module:
        starts = self._starts()
        names = [owner_name(field) for field in self.fields if field.kind != "numeric"]
        return HashRows(
            counts=self._counts(),
            singles=self._singles(),
            salts=[salt(name, 0) for name in names],
            moduli=[0 if self._exact(name) else self._sizes[name] for name in names],
            offsets=[starts[name] for name in names],
            strides=[1] * len(names),
        )

    def combine(self, dim: int) -> nn.Module:
        return OneRow()
