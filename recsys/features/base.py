"""What every kind of feature offers: a frozen config that is also the recipe of its state.

A feature goes config -> ``collector`` (sees the training values once) -> ``state`` (a dict of numpy
arrays, the only thing that is fitted) -> ``spec`` (what tables and models see) and ``module``
(scriptable, what runs in the graph). Nothing else is kept, so state + config is the whole truth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

import numpy as np
from torch import nn

from recsys.types import FieldSpec, FrozenConfig

State = Mapping[str, np.ndarray]
"""Fitted state of one feature: named arrays, written to safetensors as they are."""

InputKind = Literal["id", "float", "ids"]

ID_FAMILIES = frozenset({"text", "int", "bool", "binary", "timestamp"})
NUMBER_FAMILIES = frozenset({"float", "int", "bool", "timestamp"})


class Collector(Protocol):
    """Gathers what a feature's state is made of; the order of the values never matters."""

    def add(self, values: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Takes training values (N,): int64 ids or float64 numbers; value i occurs ``counts[i]``
        times, once if there are no counts."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """The fitted state."""
        ...


class FeatureBase(FrozenConfig):
    """Base of the feature configs. ``column``: the column of the log, by default the feature's
    own name."""

    column: str | None = None
    families: ClassVar[frozenset[str]] = ID_FAMILIES
    remedy: ClassVar[str]

    def source_column(self, name: str) -> str:
        """The column that the feature called ``name`` reads."""
        return self.column or name

    def input_kind(self, family: str) -> InputKind:
        """What the graph takes for a column of this type family."""
        del family
        return "id"

    @property
    def keep_last(self) -> int | None:
        """Elements of a list that are used, the last ones; ``None``: all."""
        return None

    @property
    def owner(self) -> str | None:
        """The feature whose state this one uses, if it is not its own."""
        return None

    @abstractmethod
    def collector(self, name: str, family: str) -> Collector | None:
        """A fresh collector, or ``None`` for a feature that nothing has to be fitted for."""

    @abstractmethod
    def spec(self, name: str, state: State) -> FieldSpec:
        """The field that tables and models see."""

    @abstractmethod
    def module(self, name: str, state: State) -> nn.Module:
        """The scriptable map of one raw column (N,) to encoded values: (N,) int64 ids, or
        (N, width) float32 for a numeric field."""
