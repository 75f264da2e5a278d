"""What a table method is: a plan that says which rows exist and how looked-up rows become vectors.

A method is three small parts around ordinary tables:

- `TableMethod.row_map`, scriptable: encoded ids -> row indices (hash, salt, quotient, remap, ...);
- `TableMethod.tables`: the tables that the rows index, for each layer width;
- `TableMethod.combine`, scriptable: looked-up rows -> vectors (concat, sum, product, project, ...).

One plan serves every layer of a model (the vectors, the first-order weights, ...): they share the
row indices, only the widths of their tables differ, and a budget is solved over all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn

from recsys.embeddings.budget import INDEX_BYTES, fixed_bytes, parse_bytes
from recsys.types import FieldSpec, FrozenConfig

if TYPE_CHECKING:
    from recsys.embeddings.store import Store
    from recsys.settings import TrainConfig

Budget = str | float


class TableConfig(FrozenConfig):
    """Keys that every table method has.

    ``embedding_dim``: width of the vectors that a model sees.
    ``budget``: bytes of all tables, projections, numeric vectors and index structures of the model,
    as text (``10MB``) or as a share of the full tables' floats (``0.1``); ``None``: no limit.
    ``init_std``: numeric vectors, and the tables of methods that say so, start from
    N(0, init_std^2); 1e-4 is FuxiCTR's value.
    """

    embedding_dim: PositiveInt = 16
    init_std: PositiveFloat = 1e-4
    budget: Budget | None = None

    @field_validator("budget")
    @classmethod
    def _is_size(cls, value: str | float | None) -> str | float | None:
        if isinstance(value, str):
            parse_bytes(value)
        elif value is not None and not 0 < value <= 1:
            raise ValueError(
                f"{value:g} is no share of the full tables, which is above 0 and at most 1; for "
                "bytes give a unit, such as 100KB"
            )
        return value


@dataclass(frozen=True)
class TableSpec:
    """One table of one layer: ``rows`` x ``width`` floats, filled in place by ``fill``.

    ``zero_row``: the last row is zeros for ever; lookups that must give nothing point at it.
    ``store``: makes a table that is no plain floats (quantised, computed, ...); ``None``: floats
    where ``train.store`` says.
    """

    name: str
    rows: int
    width: int
    fill: Callable[[Tensor], object]
    zero_row: bool = False
    store: Callable[[TableSpec, TrainConfig], Store] | None = None


class TableMethod(ABC):
    """The plan of one method for given fields and layer widths. Pure: it allocates no table.

    ``dims``: layer name -> width of its vectors. A method may lower a width to meet a budget, and
    says so; ``self.dims`` are the widths that hold.
    """

    Config: ClassVar[type[TableConfig]]

    def __init__(self, config: Any, fields: Sequence[FieldSpec], dims: Mapping[str, int]) -> None:
        self.config = config
        self.fields = tuple(fields)
        self.dims = dict(dims)

    def _counts(self) -> list[int]:
        """How many lookups each field has, (F,)."""
        return [len(self.slots(f)) for f in range(len(self.fields))]

    def _singles(self) -> int:
        """How many fields have one id a row."""
        return sum(field.kind == "categorical" for field in self.fields)

    def solution(self) -> dict[str, Any]:
        """What the plan has chosen, by name: what a budget was spent on."""
        return {}

    def fixed_bytes(self) -> int:
        """Bytes of all layers beside their tables: vectors of numeric fields, and the index
        structures of the plan as it stands, counted."""
        orders = sum(
            len(self.slots(f)) for f, field in enumerate(self.fields) if field.kind == "categorical"
        )
        with torch.device("meta"):  # sizes alone: no memory, and nothing drawn
            modules = [self.row_map(), *(self.combine(dim) for dim in self.dims.values())]
        buffers = [buffer for module in modules for buffer in module.buffers()]
        index = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
        return fixed_bytes(self.fields, self.dims) + index + INDEX_BYTES * orders * len(self.dims)

    @abstractmethod
    def slots(self, f: int) -> tuple[int, ...]:
        """Table index of each lookup of field ``f``, not falling; empty for a numeric field."""

    @abstractmethod
    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        """The tables of a layer of width ``dim``: as many for every width, and as long."""

    @abstractmethod
    def row_map(self) -> nn.Module:
        """Scriptable ``forward(ids, f)``: encoded ids of field ``f``, (..., 1), -> (..., T_f) rows;
        with ``f`` = -1 those of all categorical fields at once, (B, C) -> (B, S), slots in field
        order. Each row index is relative to the table of its slot."""

    @abstractmethod
    def combine(self, dim: int) -> nn.Module:
        """Scriptable ``forward(vectors, f)``: for each table the looked-up rows (..., n_k, d_k) of
        field ``f``'s slots (or, with ``f`` = -1, of all categorical ones, sorted by table, then by
        field) -> (..., 1, dim) (or (B, C, dim)). A true attribute ``linear`` says that it is linear
        in the rows, without bias, so that lists may be pooled before it."""
