"""Sequence: an ordered list of ids per row, oldest first; the most recent N are kept."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from recsys.features.ids import ListOptions


class Sequence(ListOptions):
    """An ordered list of ids per row. A null list is an empty one; a null element is id 0."""

    type: Literal["sequence"]
    pooling: Literal["sum", "mean"] = "mean"
    max_length: PositiveInt
