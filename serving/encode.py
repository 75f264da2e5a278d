"""From Arrow to the tensors that a scoring graph takes: one function for training and serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Literal, NamedTuple

from torch import Tensor

NULL_ID = -(2**63)
"""The id of null under id rule v1 (also the padding of lists)."""


class Batch(NamedTuple):
    """B rows as tensors. The same shape serves all three stages of a row:

    raw (id rule v1 applied: what the exported graph takes) -> encoded (per-field ids and
    normalised floats, by the feature encoder) -> rows (indices into tables, by the id map).

    Shapes, with C id columns, K float columns and one entry of ``lists`` per list field:
    ``ids`` (B, C) int64 (int32 or int64 at the rows stage, where C counts lookups);
    ``floats`` (B, K) float64 raw, float32 after encoding, NaN where missing;
    ``lists[f]`` (B, L_f) int64, at the rows stage (B, L_f, T_f); padded on the right;
    ``lengths`` (B, number of list fields) int64.
    """

    ids: Tensor
    floats: Tensor
    lists: List[Tensor]
    lengths: Tensor


@dataclass(frozen=True)
class InputField:
    """One raw input of a scoring graph, in the order the graph takes it.

    ``kind``: ``id`` fills the next column of ``Batch.ids``, ``float`` of ``Batch.floats``, ``ids``
    the next entry of ``Batch.lists``. ``dtype``: the type family seen in training (``text``,
    ``int``, ``bool``, ``float``, ``binary``, ``timestamp``); for lists that of the elements.
    ``max_length``: keep the last N elements of a list; ``None`` keeps all.
    """

    name: str
    column: str
    kind: Literal["id", "float", "ids"]
    dtype: Literal["text", "int", "bool", "float", "binary", "timestamp"]
    max_length: int | None = None
