"""Methods whose ids lie in blocks, each with a table of its own width and a projection.

Block i of ``n_i`` ids has a table ``E_i`` (n_i x d_i) and, where ``d_i < D``, a projection ``P_i``
(d_i x D) without bias: ``e(x) = E_i[x] P_i``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from recsys.embeddings.budget import FLOAT_BYTES, owner_name, owners
from recsys.embeddings.id_map import RangeRows
from recsys.embeddings.method import TableConfig, TableMethod, TableSpec
from recsys.embeddings.project import ProjectRows
from recsys.types import FieldSpec


class BlocksConfig(TableConfig):
    """``init``: ``xavier``, tables and projections alike; or ``orthonormal``: projections with
    orthonormal rows and tables of width d from N(0, init_std^2 D / d), so that vectors start with
    the variance init_std^2 of a full table and move as its do. ``projections: fixed`` leaves
    orthonormal ones as they start: a step of one moves all vectors of its block, the more so the
    wider they are (Frappe, vectors of 64: AUC .985 fixed, .983 trained).
    """

    init: Literal["xavier", "orthonormal"]
    projections: Literal["trained", "fixed"] = "trained"

    @model_validator(mode="after")
    def _fixes_orthonormal_ones(self) -> BlocksConfig:
        if self.projections == "fixed" and self.init != "orthonormal":
            raise ValueError(f"projections: fixed needs init: orthonormal, not {self.init}")
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


class ProjectedBlocks(TableMethod):
    """Blocks of equal width share one physical table; widths fall from table to table.

    A method gives `use` its blocks and the width of each in the widest layer; layers of other
    widths take the same share of theirs. A field of several blocks looks up one row in each block's
    table, all but one of them the table's zero row.
    """

    config: BlocksConfig
    blocks: Sequence[Block]
    widths: Sequence[int]

    def __init__(
        self, config: BlocksConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        self._owners = owners(fields)
        self._dim = max(dims.values())

    def use(self, blocks: Sequence[Block], widths: Sequence[int]) -> None:
        """Sets what the plan consists of."""
        self.blocks, self.widths = list(blocks), list(widths)
        self._tables = sorted(set(widths), reverse=True)

    def saves(self, width: int, rows: int) -> bool:
        """Whether a block that is ``width`` wide takes less than one of the full width."""
        return width * (rows + self._dim) < self._dim * rows

    def stored_bytes(self) -> int:
        """Bytes of all layers: tables, projections, numeric vectors, index structures."""
        words = sum(spec.rows * spec.width for d in self.dims.values() for spec in self.tables(d))
        if self.config.projections == "trained":  # fixed ones are buffers: `fixed_bytes` has them
            for dim in self.dims.values():
                scaled = [self._scaled(width, dim) for width in self.widths]
                words += sum(width * dim for width in scaled if width < dim)
        return FLOAT_BYTES * words + self.fixed_bytes()

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
                spread = sqrt(dim / self._scaled(width, dim))
                fill = partial(nn.init.normal_, std=spread * self.config.init_std)
            specs.append(
                TableSpec(f"width_{width}", rows, self._scaled(width, dim), fill, table in zeros)
            )
        return tuple(specs)

    def row_map(self) -> nn.Module:
        placed, rows = self._placed(), [spec.rows for spec in self.tables(1)]
        looked_up = [field for field in self.fields if field.kind != "numeric"]
        parts = [part for field in looked_up for part in placed[owner_name(field)]]
        return RangeRows(
            counts=self._counts(),
            singles=self._singles(),
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
            singles=self._singles(),
            orthonormal=self.config.init == "orthonormal",
            trained=self.config.projections == "trained",
        )


def _fill_xavier(weight: Tensor, sizes: Sequence[int]) -> None:
    """Each block by Xavier's rule for its own shape."""
    start = 0
    for size in sizes:
        bound = sqrt(6 / (size + weight.size(1)))
        with torch.no_grad():
            weight[start : start + size].uniform_(-bound, bound)
        start += size
