"""The choices of one block of NASRec."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from recsys.types import FrozenConfig

MERGED = 8
"""Vectors that a dense output adds to a sparse one."""

DenseOp = Literal["fc", "gating", "sum", "dot_product"]
SparseOp = Literal["embed_fc", "transformer"]
Sources = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


class BlockConfig(FrozenConfig):
    """One block. Sources are numbers of blocks, 0 the stem: ``dense_from`` of whose dense outputs
    side by side the dense operator reads, ``right_from`` those of the second argument of ``gating``
    and ``sum``, ``sparse_from`` of whose vectors ``dot_product`` and the sparse operator read.

    Outputs: ``dense_width`` numbers and ``sparse_count`` vectors. ``to_sparse``: `MERGED` more
    vectors, from the dense output; ``to_dense``: the dense output plus a normalised projection of
    the pairwise products of the vectors, as in an FM.
    """

    dense_op: DenseOp = "fc"
    sparse_op: SparseOp = "embed_fc"
    dense_width: PositiveInt = 64
    sparse_count: PositiveInt = 16
    dense_from: Sources
    right_from: tuple[NonNegativeInt, ...] = ()
    sparse_from: Sources
    to_sparse: bool = False
    to_dense: bool = False

    @model_validator(mode="after")
    def _two_arguments_or_one(self) -> BlockConfig:
        two = self.dense_op in ("gating", "sum")
        if two != bool(self.right_from):
            raise ValueError(
                f"dense_op {self.dense_op} "
                + ("has a second argument: set" if two else "has one argument: remove")
                + " right_from"
            )
        for key in ("dense_from", "right_from", "sparse_from"):
            if list(getattr(self, key)) != sorted(set(getattr(self, key))):
                raise ValueError(f"{key}: name each source once, in rising order")
        return self

    @property
    def vectors(self) -> int:
        """Vectors of the sparse output."""
        return self.sparse_count + (MERGED if self.to_sparse else 0)
