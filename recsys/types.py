"""Every noun that crosses a boundary between the rooms of the library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from serving.encode import NULL_ID, Batch, InputField
from serving.errors import InputError

__all__ = [
    "NULL_ID",
    "Batch",
    "FieldSpec",
    "FrozenConfig",
    "InputError",
    "InputField",
    "MemoryReport",
    "Metrics",
    "Target",
]

Metrics = dict[str, float]
"""Metric name -> value: ``auc``, ``gauc``, ``logloss``, ``ne``, ``pr_auc``, ``calibration``,
``ece``, ``rows``."""


class FrozenConfig(BaseModel):
    """Base of every config class: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Target(NamedTuple):
    """What a row is judged by; never enters the graph.

    Shapes: ``label`` (B,) float32 in {0, 1}; ``weight`` (B,) float32, ones if the log has none;
    ``group`` (B,) int64 (the id of the user, for GAUC), zeros if the log has none.
    """

    label: Tensor
    weight: Tensor
    group: Tensor


FieldKind = Literal["categorical", "numeric", "bag", "sequence", "generated"]
"""``generated``: vectors that a model computes (FGCNN's new features); no column, no rows."""


@dataclass(frozen=True)
class FieldSpec:
    """One field as models and tables see it, after the features are fitted.

    Fields are ordered categorical, numeric, then lists (bag and sequence), each group in config
    order; this is the order of ``F`` in the ``(B, F, D)`` that an embedding layer returns.

    ``num_ids``: size of the dense id space ``[0, num_ids)``: 0 is null, then the OOV ids, then the
    vocabulary by falling training frequency. ``None``: ids stay open 64-bit values (hashing is
    left to the table) or the field is numeric.
    ``counts``: training frequency of each id (length ``num_ids``), or ``None``.
    ``shares``: name of the field whose rows this field uses; ids then live in that field's space.
    ``width``: columns of ``Batch.floats`` that a numeric field fills (above 1 for PLE).
    ``pooling``: how a list becomes one vector in ``EmbeddingLayer.forward``.
    """

    name: str
    kind: FieldKind
    num_ids: int | None = None
    counts: np.ndarray | None = field(default=None, compare=False, repr=False)
    shares: str | None = None
    width: int = 1
    pooling: Literal["sum", "mean"] | None = None
    max_length: int | None = None

    @property
    def is_list(self) -> bool:
        """True for bag and sequence fields."""
        return self.kind in ("bag", "sequence")


@dataclass(frozen=True)
class MemoryReport:
    """Exact sizes of embedding tables, counted from real tensors.

    ``trainable_params``: numbers that an optimiser moves (tables, projections, numeric vectors).
    ``stored_bytes``: what serving must hold, index structures (remaps, codes, bounds) included.
    ``training_bytes``: weights + dense or per-row gradients buffers + optimiser state.
    ``lookups_per_row``: rows fetched for one example (a list counts its ``max_length`` or 1).
    """

    trainable_params: int
    stored_bytes: int
    training_bytes: int
    lookups_per_row: int

    def __add__(self, other: MemoryReport) -> MemoryReport:
        return MemoryReport(
            self.trainable_params + other.trainable_params,
            self.stored_bytes + other.stored_bytes,
            self.training_bytes + other.training_bytes,
            self.lookups_per_row + other.lookups_per_row,
        )
