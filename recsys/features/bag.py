"""Bag: an unordered list of ids per row, pooled into one vector."""

from __future__ import annotations

from typing import Literal

from recsys.features.ids import ListOptions


class Bag(ListOptions):
    """A list of ids per row. A null list is an empty one; a null element is id 0 (padding)."""

    type: Literal["bag"]
    pooling: Literal["sum", "mean"] = "sum"
