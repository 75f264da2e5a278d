"""Low-rank tables: one narrow table and one projection per field, of one rank for all fields.

    E_f = A_f B_f,    A_f (n_f x r), B_f (r x D), no bias.

A field that the factors would enlarge (``r (n_f + D) >= n_f D``) keeps its exact table. It is the
baseline that mixed dimensions have to beat: equal widths for popular and for rare ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from recsys.embeddings.budget import budget_bytes, dense_ids, refuse
from recsys.embeddings.projected import Block, BlocksConfig, ProjectedBlocks
from recsys.types import FieldSpec

DEFAULT_SHARE = 2
"""Without ``rank`` and ``budget`` the rank is the width over this."""


class LowRankConfig(BlocksConfig):
    """``rank``: of every table; or ``budget``: the largest rank that fits (neither: half the
    width). Layers of another width than ``embedding_dim`` take the same share of theirs, at least
    1, so that first-order weights stay exact.
    """

    method: Literal["low_rank"]
    rank: PositiveInt | None = None
    init: Literal["xavier", "orthonormal"] = "orthonormal"

    @model_validator(mode="after")
    def _fits(self) -> LowRankConfig:
        if self.rank is not None and self.budget is not None:
            raise ValueError("give rank or budget, not both; they fix the same size")
        if self.rank is not None and self.rank > self.embedding_dim:
            raise ValueError(f"rank {self.rank} must not exceed embedding_dim {self.embedding_dim}")
        return self


class LowRank(ProjectedBlocks):
    """Errors: `InputError` for open ids or a budget out of reach."""

    Config = LowRankConfig
    config: LowRankConfig

    def __init__(
        self, config: LowRankConfig, fields: Sequence[FieldSpec], dims: Mapping[str, int]
    ) -> None:
        super().__init__(config, fields, dims)
        sizes = {name: dense_ids(owner, method="low_rank") for name, owner in self._owners.items()}
        self.blocks = [Block(name, 0, rows, 1 / rows) for name, rows in sizes.items()]
        self.rank = config.rank or max(1, self._dim // DEFAULT_SHARE)
        if config.budget is not None:
            self.rank = self._solve(budget_bytes(config.budget, fields, dims))
        self._cost(self.rank)

    def solution(self) -> dict[str, Any]:
        exact = sum(width == self._dim for width in self.widths)
        return {"rank": self.rank, "exact_features": exact}

    def _cost(self, rank: int) -> int:
        full = self._dim
        self.use(self.blocks, [rank if self.saves(rank, b.rows) else full for b in self.blocks])
        return self.stored_bytes()

    def _solve(self, budget: int) -> int:
        costs = [self._cost(rank) for rank in range(1, self._dim + 1)]
        fitting = [rank for rank, cost in enumerate(costs, start=1) if cost <= budget]
        if not fitting:
            raise refuse(budget, min(costs), "embedding.method low_rank (at rank 1)")
        return max(fitting)
