"""Null indicator: a categorical field that says whether a column holds a value."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from recsys.features.base import ID_FAMILIES, Collector, FeatureBase, InputKind, State
from recsys.types import NULL_ID, FieldSpec


class NullIndicator(FeatureBase):
    """Id 0: null (for a float column also NaN). Id 1: present. List columns are refused: their
    empty list already has its own vector (zeros)."""

    type: Literal["null_indicator"]
    families: ClassVar[frozenset[str]] = ID_FAMILIES | {"float"}
    remedy: ClassVar[str] = "point it at a column that is no list"

    def input_kind(self, family: str) -> InputKind:
        """Float columns are read as numbers, all others as ids."""
        return "float" if family == "float" else "id"

    def collector(self, name: str, family: str) -> Collector:
        """Counts nulls."""
        del name
        return _NullCollector(is_float=family == "float")

    def spec(self, name: str, state: State) -> FieldSpec:
        """A categorical field of two ids."""
        return FieldSpec(name=name, kind="categorical", num_ids=2, counts=state["counts"])

    def module(self, name: str, state: State) -> nn.Module:
        """(N,) raw ids or floats -> (N,) 0 or 1."""
        del name
        return _NotNaN() if bool(state["is_float"][0]) else _NotNull()


class _NullCollector:
    def __init__(self, *, is_float: bool) -> None:
        self._is_float = is_float
        self._counts = np.zeros(2, dtype=np.int64)

    def add(self, values: np.ndarray, counts: np.ndarray | None = None) -> None:
        null = np.isnan(values) if self._is_float else values == NULL_ID
        weights = np.ones(len(values), dtype=np.int64) if counts is None else counts
        self._counts += (weights[null].sum(), weights[~null].sum())

    def state(self) -> dict[str, np.ndarray]:
        return {
            "counts": self._counts.copy(),
            "is_float": np.array([self._is_float], dtype=np.int64),
        }


class _NotNull(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.null: int = NULL_ID

    def forward(self, ids: Tensor) -> Tensor:  # (N,) int64 -> (N,) int64
        return (ids != self.null).long()


class _NotNaN(nn.Module):
    def forward(self, values: Tensor) -> Tensor:  # (N,) float64 -> (N,) int64
        return (~values.isnan()).long()
