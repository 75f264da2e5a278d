"""Popular ids own a row each, all others share hashed rows.

Zhang et al., "Model Size Reduction Using Frequency Based Double Hashing for Recommender Systems",
RecSys 2020, https://arxiv.org/abs/2007.14523; with one lookup in the tail it is the AdaptEmb of
Zhang et al., "Experimental Analysis of Large-scale Learnable Vector Storage Compression", VLDB
2024, https://arxiv.org/abs/2311.15578. With ``k_f`` popular ids and ``m_f`` tail rows in field f:

    e_f(x) = P_f[x]                                   if x is popular,
             Q_f[h(x; 1)] + ... + Q_f[h(x; T)]        otherwise, h in [0, m_f).

Ids are numbered by falling training frequency, so popular ones are the first, and no remap is
stored. Which ids of which field are popular is decided over all fields at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil, sqrt
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from recsys.embeddings.budget import (
    FLOAT_BYTES,
    budget_bytes,
    dense_ids,
    owner_name,
    owners,
    refuse,
)
from recsys.embeddings.combine import OneRow, SumRows
from recsys.embeddings.fill import Part, fill_parts
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.embeddings.popular_rows import PopularRows
from recsys.features.hashing import salt
from recsys.types import FieldSpec, InputError

DEFAULT_BUDGET = "10MB"


class FrequencyConfig(TableConfig):
    """``own``: share of the rows that popular ids own; the tails get the rest, each field in
    proportion to its tail. The size is one of ``rows`` (of all fields together), ``compression``
    (c: ``ceil(c * ids)`` rows) and ``budget`` (none of them: 10MB). ``lookups``: T in the tail.
    ``exact_below``: in fields of at most so many ids all own rows. Vectors start with variance
    init_std^2, so tail rows with a T-th of it.

    ``own`` is .9 by default, because popular ids earn more by a row than the tail by room. Mean AUC
    of two seeds, two Zipf fields of 20,000 ids with independent effects, a linear reader (the full
    table .862; hash .778 and double_hash .779 at 2,000 rows; 500 steps there, 400 elsewhere):

        own                 .1    .25    .5    .75    .9    .97
        400 rows of 40,000   -     -    .762  .769  .772  .774
        2,000               .787  .793  .803  .809  .811   -
        10,000               -     -    .835  .837  .838  .840
    """

    method: Literal["frequency"]
    own: Annotated[float, Field(ge=0, lt=1)] = 0.9
    rows: PositiveInt | None = None
    compression: Annotated[float, Field(gt=0, le=1)] | None = None
    lookups: PositiveInt = 2
    exact_below: Annotated[int, Field(ge=0)] = 64

    @model_validator(mode="after")
    def _one_size(self) -> FrequencyConfig:
        if sum(size is not None for size in (self.rows, self.compression, self.budget)) > 1:
            raise ValueError("give one of rows, compression and budget; they fix the same size")
        return self


class Frequency(TableMethod):
    """One table a layer: own rows and tail rows, field after field, then a zero row for the further
    lookups of ids that own a row.

    Errors: `InputError` for open ids, a field without training counts, or a size below one tail row
    per field.
    """

    Config = FrequencyConfig
    config: FrequencyConfig

    def __init__(
        self, config: FrequencyConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._owners = owners(fields)
        self._ids = {
            name: dense_ids(owner, method="frequency") for name, owner in self._owners.items()
        }
        self.own = dict(self._ids)  # owner -> how many of its first ids own a row
        self.tail = dict.fromkeys(self._ids, 0)  # owner -> rows that its other ids share
        rows = self._rows()
        if rows < sum(self._ids.values()):
            self._split(rows)

    def _rows(self) -> int:
        """Rows of all fields, without the zero row."""
        total = sum(self._ids.values())
        small = sum(n for n in self._ids.values() if n <= self.config.exact_below)
        least = small + sum(n > self.config.exact_below for n in self._ids.values())
        if self.config.rows is not None or self.config.compression is not None:
            rows = self.config.rows or ceil((self.config.compression or 1) * total)
            if rows < least:
                raise InputError(
                    f"embedding: method frequency gets {rows} rows but needs at least {least} "
                    "(the ids of small fields, and one row for each other field); raise rows or "
                    "compression, or lower exact_below"
                )
            return rows
        budget = budget_bytes(self.config.budget or DEFAULT_BUDGET, self.fields, self.dims)
        row = FLOAT_BYTES * sum(self.dims.values())
        if self.fixed_bytes() + row * total <= budget:
            return total
        zero = int(self.config.lookups > 1)
        exact = self.tail
        self.tail = {name: int(n > self.config.exact_below) for name, n in self._ids.items()}
        fixed = self.fixed_bytes()  # of tails in all large fields
        self.tail = exact
        rows = (budget - fixed) // row - zero
        if rows < least:
            raise refuse(budget, fixed + row * (least + zero), "embedding.method frequency")
        return rows

    def _split(self, rows: int) -> None:
        """Deals ``rows`` out to ids and tails."""
        large = {name: n for name, n in self._ids.items() if n > self.config.exact_below}
        free = rows - sum(n for name, n in self._ids.items() if name not in large)
        owned = min(int(self.config.own * free), free - len(large))
        self.own |= _most_frequent({name: self._popularity(name) for name in large}, owned)
        tails = {name: n - self.own[name] for name, n in large.items() if n > self.own[name]}
        # one row each; what is left in proportion to the other ids, rounded so that sums are exact
        spare, others = free - owned - len(tails), sum(tails.values()) - len(tails)
        seen = given = 0
        for name, n in tails.items():
            seen += n - 1
            share = spare * seen // max(1, others) - given
            given += share
            self.tail[name] = 1 + share

    def _popularity(self, name: str) -> np.ndarray:
        """For each id of ``name``: a frequency that does not rise from id to id.

        The ids before the vocabulary (null, out-of-vocabulary, buckets of a hash) come first in any
        order; they count as often as they do on average, or as the first id of the vocabulary.
        """
        counts = self._owners[name].counts
        if counts is None:
            raise InputError(
                f"features.{name}: embedding.method frequency needs training counts; use encoding "
                "vocabulary for the feature, or embedding.method double_hash"
            )
        result = np.asarray(counts, dtype=np.float64).copy()
        rises = np.flatnonzero(np.diff(result) > 0)
        if len(rises):
            first = int(rises[-1]) + 1
            result[:first] = max(result[:first].mean(), result[first])
        return result

    def _zero_row(self) -> bool:
        return self.config.lookups > 1 and any(self.own[n] and m for n, m in self.tail.items())

    def solution(self) -> dict[str, Any]:
        return {"own rows": sum(self.own.values()), "tail rows": sum(self.tail.values())}

    def slots(self, f: int) -> tuple[int, ...]:
        field = self.fields[f]
        if field.kind == "numeric":
            return ()
        return (0,) * (self.config.lookups if self.tail[owner_name(field)] else 1)

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        own = partial(nn.init.normal_, std=self.config.init_std)
        tail = partial(nn.init.normal_, std=self.config.init_std / sqrt(self.config.lookups))
        parts: list[Part] = []
        for name in self._ids:
            parts += [(self.own[name], own), (self.tail[name], tail)]
        rows = sum(size for size, _ in parts) + self._zero_row()
        fill = partial(fill_parts, parts=parts)
        return (TableSpec("frequency", rows, dim, fill, self._zero_row()),) if rows else ()

    def row_map(self) -> nn.Module:
        starts, end = {}, 0
        for name in self._ids:
            starts[name] = end
            end += self.own[name] + self.tail[name]
        slots = [
            (owner_name(field), t)
            for f, field in enumerate(self.fields)
            for t in range(len(self.slots(f)))
        ]
        return PopularRows(
            counts=self._counts(),
            singles=self._singles(),
            bounds=[self.own[name] for name, _ in slots],
            owns=[end if t else starts[name] for name, t in slots],
            strides=[int(t == 0) for _, t in slots],
            salts=[salt(name, t) for name, t in slots],
            moduli=[max(1, self.tail[name]) for name, _ in slots],
            offsets=[starts[name] + self.own[name] for name, _ in slots],
        )

    def combine(self, dim: int) -> nn.Module:
        counts = self._counts()
        if all(count <= 1 for count in counts):
            return OneRow()
        return SumRows(counts=counts, singles=self._singles())


def _most_frequent(popularity: Mapping[str, np.ndarray], rows: int) -> dict[str, int]:
    """How many first ids of each field are among the ``rows`` most frequent of all fields.

    Ties go to the fields in order.
    """
    if not popularity:
        return {}
    every = np.concatenate(list(popularity.values()))
    if rows == 0:
        return dict.fromkeys(popularity, 0)
    least = np.partition(every, len(every) - rows)[len(every) - rows]  # of the ids that make it
    result = {name: int((values > least).sum()) for name, values in popularity.items()}
    left = rows - sum(result.values())
    for name, values in popularity.items():
        ties = min(left, int((values == least).sum()))
        result[name] += ties
        left -= ties
    return result
