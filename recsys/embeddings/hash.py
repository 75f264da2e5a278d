"""The hashing trick, field by field: every field folds its ids into rows of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from recsys.embeddings.budget import (
    FLOAT_BYTES,
    budget_bytes,
    fixed_bytes,
    owner_name,
    owners,
    refuse,
)
from recsys.embeddings.combine import OneRow
from recsys.embeddings.id_map import HashRows
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.features.hashing import salt
from recsys.types import FieldSpec, InputError

DEFAULT_BUDGET = "10MB"


class HashConfig(TableConfig):
    """How many rows each field gets, by one of these keys (none: a budget of 10MB).

    ``rows``: rows of every field, or of the fields named (others as below); a field never gets more
    rows than it has ids. ``compression``: c, each field gets ``ceil(c * num_ids)`` rows.
    ``budget``: the largest c that fits. ``exact_below``: fields of at most so many ids keep an
    exact row for each. Tables start from N(0, init_std^2).
    """

    method: Literal["hash"]
    rows: PositiveInt | dict[str, PositiveInt] | None = None
    compression: Annotated[float, Field(gt=0, le=1)] | None = None
    exact_below: Annotated[int, Field(ge=0)] = 64

    @model_validator(mode="after")
    def _one_size(self) -> HashConfig:
        sizes = [self.compression, self.budget]
        if isinstance(self.rows, int):
            sizes.append(self.rows)
        if sum(size is not None for size in sizes) > 1:
            raise ValueError("give one of rows, compression and budget; they fix the same size")
        return self


class Hash(TableMethod):
    """Row of id ``x`` of field ``f``: ``offset_f + (mix(x + salt_f) mod m_f)``, one table a layer.

    Fields with as many rows as ids keep exact ones. Errors: `InputError` for a field with open ids
    that ``rows`` does not size, an unknown name in ``rows``, or a budget that cannot be met.
    """

    Config = HashConfig
    config: HashConfig

    def __init__(
        self, config: HashConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._owners = owners(fields)
        given = config.rows if isinstance(config.rows, dict) else {}
        for name in given:
            if name not in self._owners:
                raise InputError(
                    f"embedding.rows.{name}: no feature of this name owns embedding rows; "
                    f"known: {', '.join(self._owners)}"
                )
        self._sizes = self._at(1.0 if config.compression is None else config.compression)
        if not isinstance(config.rows, int) and config.compression is None:
            self._fit(budget_bytes(config.budget or DEFAULT_BUDGET, fields, dims))

    def _at(self, c: float) -> dict[str, int]:
        """Rows of each owner at compression ``c``."""
        return {name: self._rows_of(owner, c) for name, owner in self._owners.items()}

    def _rows_of(self, owner: FieldSpec, c: float) -> int:
        rows = self.config.rows
        given = rows.get(owner.name) if isinstance(rows, dict) else rows
        if owner.num_ids is None:
            if given is None:
                raise InputError(
                    f"features.{owner.name}: embedding.method hash cannot size a field with open "
                    f"ids; set embedding.rows.{owner.name}, or use embedding.method unified"
                )
            return given
        if owner.num_ids <= self.config.exact_below:
            return owner.num_ids
        return min(owner.num_ids, given if given is not None else ceil(c * owner.num_ids))

    def _fit(self, budget: int) -> None:
        slots = sum(field.kind != "numeric" for field in self.fields)
        fixed = fixed_bytes(self.fields, self.dims, slots=slots)
        row = FLOAT_BYTES * sum(self.dims.values())

        def cost(c: float) -> int:
            return fixed + row * sum(self._at(c).values())

        low, high = 0.0, 1.0
        if cost(high) <= budget:
            return
        smallest = 1e-12  # ceil makes this one row per field
        if cost(smallest) > budget:
            raise refuse(budget, cost(smallest), "embedding.method hash")
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(middle) <= budget else (low, middle)
        self._sizes = self._at(max(low, smallest))

    def slots(self, f: int) -> tuple[int, ...]:
        return () if self.fields[f].kind == "numeric" else (0,)

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        rows = sum(self._sizes.values())
        fill = partial(nn.init.normal_, std=self.config.init_std)
        return (TableSpec("hash", rows, dim, fill),) if rows else ()

    def row_map(self) -> nn.Module:
        offsets, start = {}, 0
        for name, size in self._sizes.items():
            offsets[name] = start
            start += size
        names = [owner_name(field) for field in self.fields if field.kind != "numeric"]
        return HashRows(
            counts=[len(self.slots(f)) for f in range(len(self.fields))],
            singles=sum(field.kind == "categorical" for field in self.fields),
            salts=[salt(name, 0) for name in names],
            moduli=[
                0 if self._sizes[name] == self._owners[name].num_ids else self._sizes[name]
                for name in names
            ],
            offsets=[offsets[name] for name in names],
            strides=[1] * len(names),
        )

    def combine(self, dim: int) -> nn.Module:
        return OneRow()
