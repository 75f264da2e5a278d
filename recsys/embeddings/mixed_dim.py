"""Mixed dimension embeddings: popular ids get wide rows, rare ids narrow ones.

Ginart et al., "Mixed Dimension Embeddings with Application to Memory-Efficient Recommendation
Systems", https://arxiv.org/abs/1909.11810.

Ids are cut into blocks (a field, or popularity ranges of a field). Block i of ``n_i`` ids has a
table ``E_i`` (n_i x d_i) and, where ``d_i < D``, a projection ``P_i`` (d_i x D) without bias:

    e(x) = E_i[x] P_i,    d_i = D (p_i / p_max)^alpha,    p_i = average probability of one id of i.

With one lookup per field and fields as blocks, ``p_i = 1 / n_i``: ``d_i = D (n_min / n_i)^alpha``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import log2, sqrt
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from recsys.embeddings.budget import (
    FLOAT_BYTES,
    budget_bytes,
    dense_ids,
    fixed_bytes,
    owner_name,
    owners,
    refuse,
)
from recsys.embeddings.id_map import RangeRows
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.embeddings.project import ProjectRows
from recsys.types import FieldSpec, FrozenConfig, InputError

DEFAULT_ALPHA = 0.3

Share = Annotated[float, Field(gt=0, lt=1)]


class BlockConfig(FrozenConfig):
    """Where one field is cut, its ids being sorted by falling frequency.

    ``by: ids``: ``cuts`` are shares of the ids (0.01, 0.1: the top 1 %, the next 9 %, the rest);
    ``by: frequency``: shares of the field's training lookups.
    """

    by: Literal["ids", "frequency"] = "frequency"
    cuts: Annotated[list[Share], Field(min_length=1)]

    @field_validator("cuts")
    @classmethod
    def _rising(cls, cuts: list[float]) -> list[float]:
        if any(a >= b for a, b in pairwise(cuts)):
            raise ValueError("cuts must rise")
        return cuts


class MixedDimConfig(TableConfig):
    """``alpha``: 0 keeps all widths, 1 gives every block the same number of floats; or ``budget``:
    the smallest alpha that fits (neither: 0.3). ``blocks``: popularity blocks of huge fields.
    ``power_of_two``: widths are rounded to the nearest one not above ``embedding_dim``.
    ``min_dim``: the narrowest width (4 for tables in torchrec). ``init``: ``xavier``, tables and
    projections alike, as published; or ``orthonormal``: tables from N(0, init_std^2), projections
    with orthonormal rows, so that vectors start and move as those of a full table do.
    """

    method: Literal["mixed_dim"]
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    blocks: dict[str, BlockConfig] = Field(default_factory=dict)
    power_of_two: bool = True
    min_dim: PositiveInt = 1
    init: Literal["xavier", "orthonormal"] = "xavier"

    @model_validator(mode="after")
    def _fits(self) -> MixedDimConfig:
        if self.alpha is not None and self.budget is not None:
            raise ValueError("give alpha or budget, not both; they fix the same size")
        if self.min_dim > self.embedding_dim:
            raise ValueError("min_dim must not exceed embedding_dim")
        return self


@dataclass(frozen=True)
class Block:
    """Ids ``[low, high)`` of one owner; ``popularity``: average probability of one of them."""

    owner: str
    low: int
    high: int
    popularity: float

    @property
    def rows(self) -> int:
        return self.high - self.low


class MixedDim(TableMethod):
    """Blocks of equal width share one physical table; widths fall from table to table.

    A block whose projection would cost more than it saves keeps the full width. A field of several
    blocks looks up one row in each block's table, all but one of them the table's zero row. Errors:
    `InputError` for open ids, blocks of unknown fields or without counts, a budget out of reach.
    """

    Config = MixedDimConfig
    config: MixedDimConfig

    def __init__(
        self, config: MixedDimConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._owners = owners(fields)
        for name in config.blocks:
            if name not in self._owners:
                raise InputError(
                    f"embedding.blocks.{name}: no feature of this name owns embedding rows; "
                    f"known: {', '.join(self._owners)}"
                )
        self._dim = max(dims.values())
        self.blocks = [b for owner in self._owners.values() for b in self._cut(owner)]
        self.alpha = DEFAULT_ALPHA if config.alpha is None else config.alpha
        if config.budget is not None:
            self.alpha = self._solve(budget_bytes(config.budget, fields, dims))
        self.widths = self._widths(self.alpha)  # of each block, in a layer of width self._dim
        self._tables = sorted(set(self.widths), reverse=True)

    def _cut(self, owner: FieldSpec) -> list[Block]:
        rows = dense_ids(owner, method="mixed_dim")
        config = self.config.blocks.get(owner.name)
        if config is None:
            return [Block(owner.name, 0, rows, 1 / rows)]
        if owner.counts is None:
            raise InputError(f"embedding.blocks.{owner.name}: the feature has no training counts")
        counts = np.maximum(np.asarray(owner.counts, dtype=np.float64), 1.0)
        mass = counts.cumsum() / counts.sum()
        if config.by == "ids":
            inner = [round(cut * rows) for cut in config.cuts]
        else:
            inner = [int(np.searchsorted(mass, cut)) + 1 for cut in config.cuts]
        bounds = sorted({0, rows, *(min(max(bound, 1), rows) for bound in inner)})
        share = np.diff(np.concatenate([[0.0], mass[[bound - 1 for bound in bounds[1:]]]]))
        return [
            Block(owner.name, low, high, float(part) / (high - low))
            for (low, high), part in zip(pairwise(bounds), share, strict=True)
        ]

    def _widths(self, alpha: float) -> list[int]:
        most = max((block.popularity for block in self.blocks), default=1.0)
        return [self._width(block, (block.popularity / most) ** alpha) for block in self.blocks]

    def _width(self, block: Block, ratio: float) -> int:
        full = self._dim
        if ratio >= 1:
            return full
        width = full * ratio
        if self.config.power_of_two:
            power = round(log2(max(1.0, width)))
            width = 2**power if 2**power <= full else 2 ** (power - 1)
        width = min(full, max(self.config.min_dim, round(width)))
        saves = width * (block.rows + full) < full * block.rows
        return width if saves else full

    def _cost(self, alpha: float) -> int:
        self.widths = self._widths(alpha)
        self._tables = sorted(set(self.widths), reverse=True)
        words = sum(spec.rows * spec.width for d in self.dims.values() for spec in self.tables(d))
        for dim in self.dims.values():
            scaled = [self._scaled(width, dim) for width in self.widths]
            words += sum(width * dim for width in scaled if width < dim)
        slots = sum(len(self.slots(f)) for f in range(len(self.fields)))
        return FLOAT_BYTES * words + fixed_bytes(self.fields, self.dims, slots=slots)

    def _solve(self, budget: int) -> float:
        if self._cost(0.0) <= budget:
            return 0.0
        if self._cost(1.0) > budget:
            raise refuse(budget, self._cost(1.0), "embedding.method mixed_dim (at alpha 1)")
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if self._cost(middle) <= budget else (middle, high)
        return high

    def _scaled(self, width: int, dim: int) -> int:
        """Width of a table in a layer of width ``dim``: the same share of it, at least 1."""
        return max(1, width * dim // self._dim)

    def _placed(self) -> dict[str, list[tuple[int, int, Block]]]:
        """Owner -> its blocks as (table, first row, block), by table."""
        ends = [0] * len(self._tables)
        placed: dict[str, list[tuple[int, int, Block]]] = {name: [] for name in self._owners}
        for block, width in zip(self.blocks, self.widths, strict=True):
            table = self._tables.index(width)
            placed[block.owner].append((table, ends[table], block))
            ends[table] += block.rows
        return {name: sorted(parts, key=lambda p: (p[0], p[1])) for name, parts in placed.items()}

    def _zero_rows(self) -> set[int]:
        """Tables that some lookups must miss."""
        several = [parts for parts in self._placed().values() if len(parts) > 1]
        return {table for parts in several for table, _, _ in parts}

    def slots(self, f: int) -> tuple[int, ...]:
        field = self.fields[f]
        if field.kind == "numeric":
            return ()
        return tuple(table for table, _, _ in self._placed()[owner_name(field)])

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        zeros = self._zero_rows()
        specs = []
        for table, width in enumerate(self._tables):
            sizes = [b.rows for b, w in zip(self.blocks, self.widths, strict=True) if w == width]
            rows = sum(sizes) + (table in zeros)
            fill: Callable[[Tensor], object] = partial(_fill_xavier, sizes=sizes)
            if self.config.init == "orthonormal":
                fill = partial(nn.init.normal_, std=self.config.init_std)
            specs.append(
                TableSpec(f"width_{width}", rows, self._scaled(width, dim), fill, table in zeros)
            )
        return tuple(specs)

    def row_map(self) -> nn.Module:
        placed, rows = self._placed(), [spec.rows for spec in self.tables(1)]
        looked_up = [field for field in self.fields if field.kind != "numeric"]
        parts = [part for field in looked_up for part in placed[owner_name(field)]]
        return RangeRows(
            counts=[len(self.slots(f)) for f in range(len(self.fields))],
            singles=sum(field.kind == "categorical" for field in self.fields),
            lows=[block.low for _, _, block in parts],
            highs=[block.high for _, _, block in parts],
            offsets=[first for _, first, _ in parts],
            misses=[rows[table] - 1 for table, _, _ in parts],
        )

    def combine(self, dim: int) -> nn.Module:
        placed = self._placed()
        of_field = [
            [] if field.kind == "numeric" else placed[owner_name(field)] for field in self.fields
        ]
        blocks: list[list[Block]] = [
            [b for b, w in zip(self.blocks, self.widths, strict=True) if w == width]
            for width in self._tables
        ]
        return ProjectRows(
            dim=dim,
            widths=[self._scaled(width, dim) for width in self._tables],
            sizes=[[block.rows for block in group] for group in blocks],
            places=[[(k, blocks[k].index(b)) for k, _, b in parts] for parts in of_field],
            singles=sum(field.kind == "categorical" for field in self.fields),
            orthonormal=self.config.init == "orthonormal",
        )


def _fill_xavier(weight: Tensor, sizes: Sequence[int]) -> None:
    """Each block by Xavier's rule for its own shape."""
    start = 0
    for size in sizes:
        bound = sqrt(6 / (size + weight.size(1)))
        with torch.no_grad():
            weight[start : start + size].uniform_(-bound, bound)
        start += size
