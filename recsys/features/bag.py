"""Bag: an unordered list of ids per row, pooled into one vector."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from recsys.features.base import State
from recsys.features.ids import ListOptions
from recsys.types import FieldSpec


class Bag(ListOptions):
    """A list of ids per row. A null list is an empty one; a null element is id 0 (padding)."""

    type: Literal["bag"]
    pooling: Literal["sum", "mean"] = "sum"
    max_length: PositiveInt | None = None
    remedy: ClassVar[str] = "give a list column of integers or text"

    @property
    def keep_last(self) -> int | None:
        """The last ``max_length`` elements count."""
        return self.max_length

    def spec(self, name: str, state: State) -> FieldSpec:
        """A bag field over its own or the shared id space."""
        counts = state.get("counts")
        return FieldSpec(
            name=name,
            kind="bag",
            num_ids=None if counts is None else len(counts),
            counts=counts,
            shares=self.shares,
            pooling=self.pooling,
            max_length=self.max_length,
        )
