"""Categorical: one id per row (text, integer, bool, binary or timestamp; a float is refused)."""

from __future__ import annotations

from typing import ClassVar, Literal

from recsys.features.base import State
from recsys.features.ids import IdOptions
from recsys.types import FieldSpec


class Categorical(IdOptions):
    """One id per row. Null is id 0; empty text is a value like any other."""

    type: Literal["categorical"]
    remedy: ClassVar[str] = "use type numeric, or store the ids as integers or text"

    def spec(self, name: str, state: State) -> FieldSpec:
        """A categorical field over the fitted id space."""
        counts = state.get("counts")
        num_ids = None if counts is None else len(counts)
        return FieldSpec(name=name, kind="categorical", num_ids=num_ids, counts=counts)
