"""Mixed dimension embeddings: popular ids get wide rows, rare ids narrow ones.

Ginart et al., "Mixed Dimension Embeddings with Application to Memory-Efficient Recommendation
Systems", https://arxiv.org/abs/1909.11810.

Ids are cut into blocks (a field, or popularity ranges of a field). Block i of ``n_i`` ids has a
table ``E_i`` (n_i x d_i) and, where ``d_i < D``, a projection ``P_i`` (d_i x D) without bias:

    e(x) = E_i[x] P_i,    d_i = D (p_i / p_max)^alpha,    p_i = average probability of one id of i.

With one lookup per field and fields as blocks, ``p_i = 1 / n_i``: ``d_i = D (n_min / n_i)^alpha``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import log2
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator, model_validator

from recsys.embeddings.budget import budget_bytes, dense_ids, last_fitting, refuse
from recsys.embeddings.projected import Block, BlocksConfig, ProjectedBlocks
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


class MixedDimConfig(BlocksConfig):
    """``alpha``: 0 keeps all widths, 1 gives every block the same number of floats; or ``budget``:
    the smallest alpha that fits (neither: 0.3). ``blocks``: popularity blocks of huge fields.
    ``power_of_two``: widths are rounded to the nearest one not above ``embedding_dim``.
    ``min_dim``: the narrowest width (4 for tables in torchrec). ``init``: published:
    ``xavier``, which starts faster (demo), but under L2 on all rows far too large (Frappe: AUC .942
    instead of .982).
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


class MixedDim(ProjectedBlocks):
    """A block whose projection would cost more than it saves keeps the full width.

    Errors: `InputError` for open ids, blocks of unknown fields or without counts, a budget out of
    reach.
    """

    Config = MixedDimConfig
    config: MixedDimConfig

    def __init__(
        self, config: MixedDimConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        for name in config.blocks:
            if name not in self._owners:
                raise InputError(
                    f"embedding.blocks.{name}: no feature of this name owns embedding rows; "
                    f"known: {', '.join(self._owners)}"
                )
        self.blocks = [b for owner in self._owners.values() for b in self._cut(owner)]
        self.alpha = DEFAULT_ALPHA if config.alpha is None else config.alpha
        if config.budget is not None:
            self.alpha = self._solve(budget_bytes(config.budget, fields, dims))
        self.use(self.blocks, self._widths(self.alpha))

    def solution(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "widths": ", ".join(map(str, self._tables))}

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
        width = max(1, round(full * ratio))
        if self.config.power_of_two:  # of the rounded width, as published
            power = round(log2(width))
            width = 2**power if 2**power <= full else 2 ** (power - 1)
        width = min(full, max(self.config.min_dim, width))
        return width if self.saves(width, block.rows) else full

    def _cost(self, alpha: float) -> int:
        self.use(self.blocks, self._widths(alpha))
        return self.stored_bytes()

    def _solve(self, budget: int) -> float:
        if self._cost(0.0) <= budget:
            return 0.0
        if self._cost(1.0) > budget:
            raise refuse(budget, self._cost(1.0), "embedding.method mixed_dim (at alpha 1)")
        return last_fitting(lambda alpha: self._cost(alpha) <= budget, inside=1.0, outside=0.0)
