"""Unified embedding: one table for all fields, several lookups per field.

Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML Systems",
NeurIPS 2023, https://arxiv.org/abs/2305.12102.

One table ``E`` of M rows and chunk width ``d = D / T`` serves every field; id x of field f is

    e_f(x) = [E[h(x; f, 1)]; ...; E[h(x; f, T)]],   h(x; f, t) = mix(x + salt(f, t)) mod M.

The number of floats depends neither on the vocabularies nor on the number of fields, and ids need
no vocabulary at all. Two ids of one field share all their rows with probability ``M^-T``.
Collisions between fields are benign where each field has its own reader weights (the model learns
readers that are near orthogonal); do not add two such vectors before any field-specific weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn

from recsys.embeddings.budget import (
    FLOAT_BYTES,
    budget_bytes,
    owner_name,
    owners,
    refuse,
)
from recsys.embeddings.combine import ConcatRows, SumRows
from recsys.embeddings.id_map import HashRows
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.features.hashing import salt
from recsys.types import FieldSpec, InputError

DEFAULT_BUDGET = "10MB"


class UnifiedConfig(TableConfig):
    """``lookups``: T, for all fields or by field; fields not named get the largest T named.

    A field with fewer lookups than the largest repeats its chunks, so that widths stay equal.
    ``rows``: M; or ``budget`` (neither: 10MB). ``exact_below``: fields of at most so many ids keep
    exact rows (T per id, behind the M shared ones). The table starts from U(-init_range,
    init_range).
    """

    method: Literal["unified"]
    lookups: PositiveInt | dict[str, PositiveInt] = 2
    rows: PositiveInt | None = None
    exact_below: Annotated[int, Field(ge=0)] = 64
    init_range: PositiveFloat = 0.05

    @model_validator(mode="after")
    def _fits(self) -> UnifiedConfig:
        if self.rows is not None and self.budget is not None:
            raise ValueError("give rows or budget, not both; they fix the same size")
        if self.lookups == {}:
            raise ValueError("lookups names no field; give a number or at least one field")
        if self.embedding_dim % self.largest:
            raise ValueError(
                f"lookups {self.largest} must divide embedding_dim {self.embedding_dim}: a vector "
                "is that many chunks of equal width"
            )
        return self

    @property
    def largest(self) -> int:
        """The largest number of lookups of any field."""
        return self.lookups if isinstance(self.lookups, int) else max(self.lookups.values())


class Unified(TableMethod):
    """One table of M shared rows, then the exact rows of small fields.

    A layer narrower than T (first-order weights) cannot be cut into T chunks: its chunks have the
    layer's own width and are summed. Errors: `InputError` for a layer width that T does not divide,
    an unknown name in ``lookups``, or a budget below one shared row.
    """

    Config = UnifiedConfig
    config: UnifiedConfig

    def __init__(
        self, config: UnifiedConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._owners = owners(fields)
        named = config.lookups if isinstance(config.lookups, dict) else {}
        for name in named:
            if name not in self._owners:
                raise InputError(
                    f"embedding.lookups.{name}: no feature of this name owns embedding rows; "
                    f"known: {', '.join(self._owners)}"
                )
        self._lookups = {name: named.get(name, config.largest) for name in self._owners}
        self._most = max(self._lookups.values(), default=1)
        self._exact: dict[str, int] = {}  # owner -> first of its exact rows, from the M-th row on
        self._exact_rows = 0
        for name, owner in self._owners.items():
            if owner.num_ids is not None and owner.num_ids <= config.exact_below:
                self._exact[name] = self._exact_rows
                self._exact_rows += owner.num_ids * self._lookups[name]
        hashed = len(self._exact) < len(self._owners)
        self._shared = int(hashed)
        if hashed:
            self._shared = self._shared_rows()

    def _shared_rows(self) -> int:
        if self.config.rows is not None:
            return self.config.rows
        budget = budget_bytes(self.config.budget or DEFAULT_BUDGET, self.fields, self.dims)
        fixed = self.fixed_bytes()
        row = FLOAT_BYTES * sum(self._width(dim) for dim in self.dims.values())
        rows = (budget - fixed) // row - self._exact_rows
        if rows < 1:
            raise refuse(budget, fixed + row * (1 + self._exact_rows), "embedding.method unified")
        return rows

    def _width(self, dim: int) -> int:
        if dim < self._most:
            return dim
        if dim % self._most:
            raise InputError(
                f"embedding.lookups {self._most}: must divide the width {dim} of every layer of "
                "the model; change lookups or the model's width"
            )
        return dim // self._most

    def solution(self) -> dict[str, Any]:
        return {"rows": self._shared, "exact rows": self._exact_rows, "lookups": self._most}

    def slots(self, f: int) -> tuple[int, ...]:
        field = self.fields[f]
        return () if field.kind == "numeric" else (0,) * self._lookups[owner_name(field)]

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        rows = self._shared + self._exact_rows
        bound = self.config.init_range
        fill = partial(nn.init.uniform_, a=-bound, b=bound)
        return (TableSpec("unified", rows, self._width(dim), fill),) if rows else ()

    def row_map(self) -> nn.Module:
        salts, moduli, offsets, strides = [], [], [], []
        for field in self.fields:
            if field.kind == "numeric":
                continue
            name = owner_name(field)
            for t in range(self._lookups[name]):
                exact = name in self._exact
                salts.append(salt(name, t))
                moduli.append(0 if exact else self._shared)
                offsets.append(self._shared + self._exact[name] + t if exact else 0)
                strides.append(self._lookups[name])
        return HashRows(
            counts=self._counts(),
            singles=self._singles(),
            salts=salts,
            moduli=moduli,
            offsets=offsets,
            strides=strides,
        )

    def combine(self, dim: int) -> nn.Module:
        kind = SumRows if dim < self._most else ConcatRows
        return kind(counts=self._counts(), singles=self._singles())

    def _counts(self) -> list[int]:
        return [len(self.slots(f)) for f in range(len(self.fields))]

    def _singles(self) -> int:
        return sum(field.kind == "categorical" for field in self.fields)
