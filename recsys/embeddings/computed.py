"""Methods that give every large field a table computed from few parameters, small fields rows.

What such methods share: one size (a rank, a width) for all fields, given or solved from a budget,
and two rules. A field that the parameters would enlarge keeps exact rows. A layer of another width
than the widest (first-order weights) gets, for each field, the largest size at which it takes no
larger share of its full table than the widest layer does, at least 1, or plain rows where these
are smaller.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from recsys.embeddings.budget import (
    FLOAT_BYTES,
    budget_bytes,
    fixed_bytes,
    largest_fitting,
    owners,
    refuse,
)
from recsys.embeddings.budget import owner_name as owner_of
from recsys.embeddings.id_map import RangeRows
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.embeddings.row_of_tables import RowOfTables
from recsys.embeddings.store import Store
from recsys.settings import TrainConfig
from recsys.types import FieldSpec

LARGEST = 2**20
Factory = Callable[[TableSpec, TrainConfig], Store]


class ComputedFields(TableMethod):
    """One table of exact rows, if any field keeps these, then one table for each other field.

    Methods say how many floats a table takes (`words`) and what computes it (`store`), and call
    `use` or `solve`.
    """

    what: str
    """What the size is called in messages."""

    def __init__(
        self, config: TableConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._owners = owners(fields)
        self._dim = max(dims.values())

    @abstractmethod
    def words(self, rows: int | None, dim: int, size: int) -> int:
        """Floats of a computed table of ``rows`` rows (``None``: open ids) of width ``dim``; rises
        with ``size``, and with ``size`` fixed does not fall as ``dim`` rises."""

    @abstractmethod
    def store(self, owner: FieldSpec, dim: int, size: int) -> Factory:
        """Makes that table for the field ``owner``."""

    def use(self, size: int) -> None:
        """Sets the size, and with it the fields that keep exact rows and where these start."""
        self.size = size
        self.computed: list[FieldSpec] = []
        self._starts: dict[str, int] = {}
        self._exact_rows = 0
        for owner in self._owners.values():
            if self._compressed(owner, self._dim, size):
                self.computed.append(owner)
            else:
                assert owner.num_ids is not None
                self._starts[owner.name] = self._exact_rows
                self._exact_rows += owner.num_ids

    def solve(self, budget: str | float) -> int:
        """The largest size that meets a budget.

        Errors: `InputError` with the floor if there is none.
        """
        allowed = budget_bytes(budget, self.fields, self.dims)
        if self._cost(1) > allowed:
            what = f"embedding.method {self.config.method} (at {self.what} 1)"
            raise refuse(allowed, self._cost(1), what)
        return largest_fitting(lambda size: self._cost(size) <= allowed, low=1, high=LARGEST)

    def _cost(self, size: int) -> int:
        self.use(size)
        words = self._exact_rows * sum(self.dims.values())
        for dim in self.dims.values():
            for owner in self.computed:
                own = self._own_size(owner, dim)
                plain = not self._compressed(owner, dim, own)
                words += (
                    (owner.num_ids or 0) * dim if plain else self.words(owner.num_ids, dim, own)
                )
        # index structures: 40 bytes a slot, and 16 more in every layer
        slots = sum(self._counts())
        slots = -(-slots * (len(self.dims) + 1) // 2)
        return FLOAT_BYTES * words + fixed_bytes(self.fields, self.dims, slots=slots)

    def _compressed(self, owner: FieldSpec, dim: int, size: int) -> bool:
        rows = owner.num_ids
        return rows is None or self.words(rows, dim, size) < rows * dim

    def _own_size(self, owner: FieldSpec, dim: int) -> int:
        """The size of the table of ``owner`` in a layer of width ``dim``."""
        if dim == self._dim:
            return self.size
        rows = owner.num_ids
        allowed = self.words(rows, self._dim, self.size) * dim
        return largest_fitting(
            lambda size: self.words(rows, dim, size) * self._dim <= allowed, low=1, high=self.size
        )

    def solution(self) -> dict[str, Any]:
        return {self.what: self.size, "exact_features": len(self._starts)}

    def _first(self) -> int:
        """Index of the first computed table."""
        return int(self._exact_rows > 0)

    def _table(self, name: str) -> int:
        if name in self._starts:
            return 0
        return self._first() + [owner.name for owner in self.computed].index(name)

    def slots(self, f: int) -> tuple[int, ...]:
        field = self.fields[f]
        return () if field.kind == "numeric" else (self._table(owner_of(field)),)

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        fill = partial(nn.init.normal_, std=self.config.init_std)
        specs = [TableSpec("exact", self._exact_rows, dim, fill)] if self._exact_rows else []
        for owner in self.computed:
            own = self._own_size(owner, dim)
            computed = self._compressed(owner, dim, own)
            store = self.store(owner, dim, own) if computed else None
            specs.append(TableSpec(owner.name, owner.num_ids or 0, dim, fill, store=store))
        return tuple(specs)

    def row_map(self) -> nn.Module:
        looked_up = [field for field in self.fields if field.kind != "numeric"]
        return RangeRows(
            counts=self._counts(),
            singles=self._singles(),
            lows=[0] * len(looked_up),
            highs=[field.num_ids or 0 for field in looked_up],
            offsets=[self._starts.get(owner_of(field), 0) for field in looked_up],
            misses=[0] * len(looked_up),
        )

    def combine(self, dim: int) -> nn.Module:
        places = [-1 if f.kind == "numeric" else self._table(owner_of(f)) for f in self.fields]
        return RowOfTables(places=places, singles=self._singles())
