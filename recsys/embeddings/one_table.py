"""What methods share that keep one table for the ids of all fields."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import nn

from recsys.embeddings.budget import FLOAT_BYTES, budget_bytes, owner_name, owners, refuse
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.embeddings.store import Store
from recsys.settings import TrainConfig
from recsys.types import FieldSpec, InputError

DEFAULT_BUDGET = "10MB"


class OneTableConfig(TableConfig):
    """``rows``: M, shared by all fields; or ``budget`` (neither: 10MB). ``exact_below``: fields of
    at most so many ids keep rows of their own, behind the M shared ones. The table starts from
    U(-init_range, init_range).
    """

    method: str
    rows: PositiveInt | None = None
    exact_below: Annotated[int, Field(ge=0)] = 64
    init_range: PositiveFloat = 0.05

    @model_validator(mode="after")
    def _one_size(self) -> OneTableConfig:
        if self.rows is not None and self.budget is not None:
            raise ValueError("give rows or budget, not both; they fix the same size")
        return self


class OneTable(TableMethod):
    """M shared rows, then the rows of small fields. A vector is pieces, each a row of the table; a
    layer narrower than the most pieces of a field has rows of its own width.

    Errors: `InputError` for a layer width that the number of pieces does not divide, or a budget
    below ``least`` shared rows.
    """

    Config: ClassVar[type[OneTableConfig]]
    config: OneTableConfig

    def __init__(
        self, config: OneTableConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._owners = owners(fields)
        self._pieces = self.pieces()
        self._most = max(self._pieces.values(), default=1)
        self._exact: dict[str, int] = {}  # owner -> first of its own rows, from the M-th row on
        self._exact_rows = 0
        for name, owner in self._owners.items():
            if owner.num_ids is not None and owner.num_ids <= config.exact_below:
                self._exact[name] = self._exact_rows
                self._exact_rows += owner.num_ids * self._pieces[name]
        self._shared = 0
        if len(self._exact) < len(self._owners):
            self._shared = self.least  # to be built, for what it takes beside the table
            self._shared = self._shared_rows()

    @abstractmethod
    def pieces(self) -> dict[str, int]:
        """How many rows an id of each owner reads."""

    @property
    def least(self) -> int:
        """The fewest shared rows that work."""
        return 1

    @property
    def store(self) -> Callable[[TableSpec, TrainConfig], Store] | None:
        """See `TableSpec`."""
        return None

    @abstractmethod
    def misfit(self, dim: int) -> InputError:
        """The error of a layer of this width, which the pieces do not divide."""

    def _shared_rows(self) -> int:
        if self.config.rows is not None:
            return self.config.rows
        budget = budget_bytes(self.config.budget or DEFAULT_BUDGET, self.fields, self.dims)
        fixed = self.fixed_bytes()
        row = FLOAT_BYTES * sum(self._width(dim) for dim in self.dims.values())
        rows = (budget - fixed) // row - self._exact_rows
        if rows < self.least:
            floor = fixed + row * (self.least + self._exact_rows)
            raise refuse(budget, floor, f"embedding.method {self.config.method}")
        return rows

    def _width(self, dim: int) -> int:
        if dim < self._most:
            return dim
        if dim % self._most:
            raise self.misfit(dim)
        return dim // self._most

    def slots(self, f: int) -> tuple[int, ...]:
        field = self.fields[f]
        return () if field.kind == "numeric" else (0,) * self._pieces[owner_name(field)]

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        rows = self._shared + self._exact_rows
        fill = partial(nn.init.uniform_, a=-self.config.init_range, b=self.config.init_range)
        spec = TableSpec(self.config.method, rows, self._width(dim), fill, store=self.store)
        return (spec,) if rows else ()
