"""Rows for the ids that are in use: a zero-collision table over streams whose ids come and go.

An id that training has seen often enough owns a row of its own, and no other id shares it; when
rows are short, the least used ones pass to other ids. Ids that own none share one row. This is
what torchrec calls managed collisions or zero-collision hashing
(https://github.com/pytorch/torchrec, ``modules/mc_modules.py``); Liu et al., "Monolith",
https://arxiv.org/abs/2209.07663, admits and expires ids in the same manner. How owners change is
in `recsys.embeddings.managed_ids`.

Row indices, which are computed once and cached, cannot depend on what training does later: they are
the ids themselves, and the table finds their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from recsys.embeddings.budget import (
    FLOAT_BYTES,
    budget_bytes,
    largest_fitting,
    owner_name,
    owners,
    refuse,
)
from recsys.embeddings.id_map import RangeRows
from recsys.embeddings.managed_ids import LEAST_WAITING, SPECIAL_ROWS, ManagedIds, SortedIds
from recsys.embeddings.managed_store import ManagedStore
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.embeddings.row_of_tables import RowOfTables
from recsys.embeddings.store import Store
from recsys.settings import TrainConfig
from recsys.types import NULL_ID, FieldSpec, InputError

DEFAULT_BUDGET = "10MB"
LEAST_ROWS = SPECIAL_ROWS + 1

Rows = Annotated[int, Field(ge=LEAST_ROWS)]


class ManagedConfig(TableConfig):
    """``rows``: N of every field, or of the fields named; the last is the shared miss row, the one
    before it null's. ``budget`` (10MB if neither is given): N is the same for all other fields, as
    large as fits; a row of a long vocabulary and one of a short are then looked up about equally
    often, and open ids, whose number nobody knows, need no guess. A field whose full table takes no
    more bytes than N rows and their ids keeps exact rows.

    ``admission``: how often an id must have been seen in training to own a row. Closed ids were
    counted when the features were fitted: the most frequent ones own rows from the start.
    ``eviction``: least frequently or least recently used; every ``eviction_interval`` batches.
    Tables start from N(0, init_std^2), and so does every row that passes to another id.

    Within a run batches are shuffled; what moves with time is a run for each part of a log, which
    starts from the bundle of the last one (``train.warm_start``, open ids).
    """

    method: Literal["managed"]
    rows: Rows | dict[str, Rows] | None = None
    eviction: Literal["lfu", "lru"] = "lfu"
    admission: PositiveInt = 2
    eviction_interval: PositiveInt = 10

    @model_validator(mode="after")
    def _one_size(self) -> ManagedConfig:
        if isinstance(self.rows, int) and self.budget is not None:
            raise ValueError("give rows or budget, not both; they fix the same size")
        return self


class Managed(TableMethod):
    """One table for all exact fields, then one for each managed field, whose owners all layers
    share. A model that scores every item at every step (a softmax over all of them) uses every id.

    Errors: `InputError` for an unknown name in ``rows``, or a budget below three rows a field.
    """

    Config = ManagedConfig
    config: ManagedConfig

    def __init__(
        self, config: ManagedConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._owners = owners(fields)
        self._given = config.rows if isinstance(config.rows, dict) else {}
        for name in self._given:
            if name not in self._owners:
                raise InputError(
                    f"embedding.rows.{name}: no feature of this name owns embedding rows; "
                    f"known: {', '.join(self._owners)}"
                )
        self._others = [name for name in self._owners if name not in self._given]
        self._ids: dict[str, ManagedIds] = {}  # made with the first layer's tables
        self.rows: dict[str, int] = {}  # N of each managed owner
        self.exact: dict[str, int] = {}  # first row of each exact owner in the exact table
        self.exact_rows = 0
        if isinstance(config.rows, int):
            self._deal(config.rows * len(self._others))
        elif config.budget is None and not self._others:
            self._deal(0)
        else:
            self._fit(budget_bytes(config.budget or DEFAULT_BUDGET, fields, dims))

    def _deal(self, total: int) -> None:
        """Gives ``total`` rows to the fields without rows of their own, evenly."""
        self.rows, self.exact, self.exact_rows = {}, {}, 0
        places = {name: place for place, name in enumerate(self._others)}
        for name, owner in self._owners.items():
            if name in self._given:
                rows = self._given[name]
            else:
                rows = (total + places[name]) // len(self._others)
            if owner.num_ids is not None and self._row() * owner.num_ids <= self._bytes(name, rows):
                self.exact[name] = self.exact_rows
                self.exact_rows += owner.num_ids
            else:
                self.rows[name] = rows

    def _row(self) -> int:
        """Bytes of one row, all layers together."""
        return FLOAT_BYTES * sum(self.dims.values())

    def _bytes(self, name: str, rows: int) -> int:
        """Bytes of ``rows`` managed rows of the owner ``name`` and their ids, as served."""
        key = 8 if _is_wide(self._owners[name]) else 4
        return self._row() * rows + key * (rows - SPECIAL_ROWS)

    def _cost(self, total: int) -> int:
        """Bytes of all layers with ``total`` rows to deal out, which the plan then has."""
        self._deal(total)
        managed = sum(self._bytes(name, rows) for name, rows in self.rows.items())
        return self.fixed_bytes() + self._row() * self.exact_rows + managed

    def _fit(self, budget: int) -> None:
        least = LEAST_ROWS * len(self._others)
        if self._cost(least) > budget:
            raise refuse(budget, self._cost(least), "embedding.method managed")
        sizes = [self._owners[name].num_ids for name in self._others]
        most = max((budget // self._row() if n is None else n for n in sizes), default=0)
        high = max(least, most * len(self._others))
        self._deal(largest_fitting(lambda t: self._cost(t) <= budget, low=least, high=high))

    def solution(self) -> dict[str, Any]:
        return {"rows": sum(self.rows.values()), "exact rows": self.exact_rows}

    def slots(self, f: int) -> tuple[int, ...]:
        field = self.fields[f]
        if field.kind == "numeric":
            return ()
        name = owner_name(field)
        if name in self.exact:
            return (0,)
        return (int(self.exact_rows > 0) + list(self.rows).index(name),)

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        fill = partial(nn.init.normal_, std=self.config.init_std)
        exact = TableSpec("exact", self.exact_rows, dim, fill)
        managed = (
            TableSpec(name, rows, dim, fill, store=self._store) for name, rows in self.rows.items()
        )
        return (*((exact,) if self.exact_rows else ()), *managed)

    def _store(self, spec: TableSpec, train: TrainConfig) -> Store:
        first = spec.name not in self._ids
        if first:
            self._ids[spec.name] = self._managed_ids(self._owners[spec.name], spec.rows)
        return ManagedStore(spec=spec, train=train, ids=self._ids[spec.name], first=first)

    def _managed_ids(self, owner: FieldSpec, rows: int) -> ManagedIds:
        size = rows - SPECIAL_ROWS
        waiting = max(size, LEAST_WAITING)
        if owner.num_ids is not None:
            waiting = min(waiting, owner.num_ids)
        null = NULL_ID if owner.num_ids is None else 0
        return ManagedIds(
            lookup=SortedIds(size=size, null=null, wide=_is_wide(owner)),
            start=torch.from_numpy(self._first_owners(owner, size)),
            waiting=waiting,
            eviction=self.config.eviction,
            admission=self.config.admission,
            interval=self.config.eviction_interval,
        )

    def _first_owners(self, owner: FieldSpec, size: int) -> np.ndarray:
        """Ids that own rows before training, rising: the most frequent ones, if ids are closed."""
        if owner.num_ids is None:
            return np.empty(0, np.int64)
        ids = np.arange(1, owner.num_ids)
        if owner.counts is not None:
            counts = np.asarray(owner.counts)[1:]
            ids = ids[np.argsort(-counts, kind="stable")][: (counts >= self.config.admission).sum()]
        return np.sort(ids[:size])

    def row_map(self) -> nn.Module:
        looked_up = [field for field in self.fields if field.kind != "numeric"]
        return RangeRows(
            counts=self._counts(),
            singles=self._singles(),
            lows=[0] * len(looked_up),
            highs=[field.num_ids or 0 for field in looked_up],
            offsets=[self.exact.get(owner_name(field), 0) for field in looked_up],
            misses=[0] * len(looked_up),
        )

    def combine(self, dim: int) -> nn.Module:
        places = [slots[0] if slots else -1 for slots in map(self.slots, range(len(self.fields)))]
        return RowOfTables(places=places, singles=self._singles())


def _is_wide(owner: FieldSpec) -> bool:
    """Whether the ids of a field take 64 bits."""
    return owner.num_ids is None or owner.num_ids > torch.iinfo(torch.int32).max
