"""Compositional embeddings: an id is a few digits, and each digit chooses a row.

Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient
Recommendation Systems", KDD 2020, https://arxiv.org/abs/1909.02107. With radix m and k partitions

    p_j(x) = floor(x' / m^(j-1)) mod m,   j < k,      p_k(x) = floor(x' / m^(k-1)),
    e(x) = W_1[p_1(x)] o ... o W_k[p_k(x)],           o: product, sum or concatenation,

``x' = a x mod n`` a fixed permutation of the ids. No two ids share all digits, so every id has a
vector of its own from ``(k - 1) m + ceil(n / m^(k-1))`` rows; for k = 2, at least ``2 sqrt(n)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import ceil, sqrt
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator
from torch import nn

from recsys.embeddings.budget import (
    FLOAT_BYTES,
    budget_bytes,
    dense_ids,
    fixed_bytes,
    owner_name,
    owners,
    refuse,
)
from recsys.embeddings.combine import ConcatRows, OneRow, SumRows
from recsys.embeddings.fill import Part, fill_parts
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.embeddings.radix import ProductRows, RadixRows, spread_multiplier
from recsys.types import FieldSpec, InputError

DEFAULT_BUDGET = "10MB"


class QuotientRemainderConfig(TableConfig):
    """``m``: the radix of all fields, or ``budget``: the smallest m that fits (neither: 10MB).
    ``partitions``: k. A field that digits would not make smaller, and one of at most
    ``exact_below`` ids, keeps a row for each id.

    ``operation``: ``product`` was best in the paper; vectors that are ``add``\\ ed are useless to a
    linear reader, which then sees no more than k sums of effects. ``init``: ``matched`` gives
    vectors the variance init_std^2 of a full table: factors of a product start near one
    (1 + N(0, .1^2)) but for the leading digit's, so that a vector starts as that digit's row and
    every factor gets a gradient; summed rows get a k-th of the variance. ``dlrm``: DLRM's
    U(sqrt(1/n), 1) for every digit's rows, and U(+-sqrt(1/n)) for exact ones.
    """

    method: Literal["quotient_remainder"]
    operation: Literal["product", "add", "concat"] = "product"
    partitions: Annotated[int, Field(ge=2, le=8)] = 2
    m: Annotated[int, Field(ge=2)] | None = None
    exact_below: Annotated[int, Field(ge=0)] = 0
    init: Literal["matched", "dlrm"] = "matched"

    @model_validator(mode="after")
    def _fits(self) -> QuotientRemainderConfig:
        if self.m is not None and self.budget is not None:
            raise ValueError("give m or budget, not both; they fix the same size")
        if self.operation == "concat" and self.embedding_dim % self.partitions:
            raise ValueError(
                f"partitions {self.partitions} must divide embedding_dim {self.embedding_dim}: "
                "with operation concat a vector is that many chunks of equal width"
            )
        return self


class QuotientRemainder(TableMethod):
    """One table a layer: for each field the rows of its digits, lowest first, or its exact rows.

    A field of at most ``m^(k-1)`` ids has fewer digits than k. With ``concat``, rows are chunks,
    exact fields have k of them per id, fields of fewer digits repeat theirs, and a layer narrower
    than k (first-order weights) adds rows of its own width.

    Errors: `InputError` for open ids, a width that k does not divide, or a budget below the size at
    the best m.
    """

    Config = QuotientRemainderConfig
    config: QuotientRemainderConfig

    def __init__(
        self, config: QuotientRemainderConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._ids = {
            name: dense_ids(owner, method="quotient_remainder")
            for name, owner in owners(fields).items()
        }
        self._chunks = config.partitions if config.operation == "concat" else 1
        for dim in dims.values():
            if dim >= self._chunks and dim % self._chunks:
                raise InputError(
                    f"embedding.partitions {self._chunks}: must divide the width {dim} of every "
                    "layer of the model with operation concat; change partitions, operation or "
                    "the model's width"
                )
        self.m = config.m or self._solve(
            budget_bytes(config.budget or DEFAULT_BUDGET, fields, dims)
        )
        self._radices = {name: self._digits(n) for name, n in self._ids.items()}

    def _width(self, dim: int) -> int:
        return dim if dim < self._chunks else dim // self._chunks

    def _digits(self, n: int) -> list[int]:
        """Radices of a field of ``n`` ids, lowest digit first; one digit: exact."""
        m, k = self.m, self.config.partitions
        if m == 1:
            return [n]
        while k > 1 and m ** (k - 1) >= n:  # the leading digit would always be 0
            k -= 1
        radices = [m] * (k - 1) + [-(-n // m ** (k - 1))]
        smaller = n > self.config.exact_below and sum(radices) < self._chunks * n
        return radices if smaller else [n]

    def _solve(self, budget: int) -> int:
        """The smallest m that fits; 1 if no field needs digits."""
        k = self.config.partitions
        looked_up = sum(field.kind != "numeric" for field in self.fields)
        row = FLOAT_BYTES * sum(self._width(dim) for dim in self.dims.values())
        # three slots for the order of digits in every layer and the map's six numbers of each
        fixed = fixed_bytes(self.fields, self.dims, slots=2 * k * looked_up)
        exact_slots = looked_up * (2 * k if self._chunks > 1 else 2)
        exact = fixed_bytes(self.fields, self.dims, slots=exact_slots)
        if exact + row * self._chunks * sum(self._ids.values()) <= budget:
            return 1
        largest = max(self._ids.values(), default=1)
        # rows fall with m up to the k-th root of n, and rise behind it
        m = np.arange(2, max(3, ceil(largest ** (1 / k)) + 2), dtype=np.int64)
        rows = np.zeros_like(m)
        for n in self._ids.values():
            exact_rows = np.full_like(m, self._chunks * n)
            field = exact_rows
            for j in range(2, k + 1) if n > self.config.exact_below else ():
                power = m ** (j - 1)
                field = np.where(power < n, (j - 1) * m - (-n // power), field)
            rows += np.minimum(exact_rows, field)
        cost = fixed + row * rows
        fits = np.flatnonzero(cost <= budget)
        if len(fits) == 0:
            raise refuse(budget, int(cost.min()), "embedding.method quotient_remainder")
        return int(m[fits[0]])

    def solution(self) -> dict[str, Any]:
        rows = sum(sum(self._rows_of(name)) for name in self._ids)
        return {"m": self.m, "rows": rows}

    def _rows_of(self, name: str) -> list[int]:
        """Rows of each digit of a field, or all of its exact rows."""
        radices = self._radices[name]
        return radices if len(radices) > 1 else [self._chunks * radices[0]]

    def _bases(self) -> dict[str, list[int]]:
        """First row of each digit of each owner."""
        bases: dict[str, list[int]] = {}
        end = 0
        for name in self._ids:
            bases[name] = []
            for rows in self._rows_of(name):
                bases[name].append(end)
                end += rows
        return bases

    def slots(self, f: int) -> tuple[int, ...]:
        field = self.fields[f]
        if field.kind == "numeric":
            return ()
        digits = len(self._radices[owner_name(field)])
        return (0,) * (digits if digits > 1 else self._chunks)

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        parts: list[Part] = []
        for name, n in self._ids.items():
            rows = self._rows_of(name)
            parts += [(size, self._start(n, j, len(rows), dim)) for j, size in enumerate(rows)]
        total = sum(size for size, _ in parts)
        fill = partial(fill_parts, parts=parts)
        return (TableSpec("digits", total, self._width(dim), fill),) if total else ()

    def _start(self, n: int, digit: int, digits: int, dim: int) -> Any:
        """What fills the rows of one digit of a field of ``n`` ids."""
        std = self.config.init_std
        if self.config.init == "dlrm":
            bound = sqrt(1 / n)
            low, high = (-bound, bound) if digits == 1 else (bound, 1.0)
            return partial(nn.init.uniform_, a=low, b=high)
        if self.config.operation == "product" and digits > 1:
            if digit < digits - 1:
                return partial(nn.init.normal_, mean=1.0, std=0.1)
            return partial(nn.init.uniform_, a=-sqrt(3) * std, b=sqrt(3) * std)
        adds = digits if self.config.operation == "add" or dim < self._chunks else 1
        if digits == 1 and dim < self._chunks:
            adds = self._chunks
        return partial(nn.init.normal_, std=std / sqrt(adds))

    def row_map(self) -> nn.Module:
        bases = self._bases()
        multipliers, sizes, divisors, radices, strides, offsets = [], [], [], [], [], []
        for f, field in enumerate(self.fields):
            name = owner_name(field)
            for t in range(len(self.slots(f))):
                n, digits = self._ids[name], self._radices[name]
                exact = len(digits) == 1
                multipliers.append(1 if exact else spread_multiplier(n))
                sizes.append(n)
                divisors.append(1 if exact else self.m**t)
                radices.append(n if exact else digits[t])
                strides.append(self._chunks if exact else 1)
                offsets.append(bases[name][0] + t if exact else bases[name][t])
        return RadixRows(
            counts=self._counts(),
            singles=self._singles(),
            multipliers=multipliers,
            sizes=sizes,
            divisors=divisors,
            radices=radices,
            strides=strides,
            offsets=offsets,
        )

    def combine(self, dim: int) -> nn.Module:
        counts = self._counts()
        if all(count <= 1 for count in counts):
            return OneRow()
        if self.config.operation == "product":
            return ProductRows(
                counts=counts,
                singles=self._singles(),
                sizes=list(self._ids.values()),
                digits=list(self._radices.values()),
                bases=list(self._bases().values()),
            )
        if self.config.operation == "add" or self._width(dim) == dim:
            return SumRows(counts=counts, singles=self._singles())
        return ConcatRows(counts=counts, singles=self._singles())
