"""Several hashed rows per id, summed or concatenated, field by field.

Zhang et al., "Model Size Reduction Using Frequency Based Double Hashing for Recommender Systems",
RecSys 2020, https://arxiv.org/abs/2007.14523 (its tail), and hash embeddings without importance
weights (Svenstrup et al., NeurIPS 2017, https://arxiv.org/abs/1709.03933). Field f has ``m_f`` rows
and T hash functions over all of them:

    e_f(x) = E_f[h(x; 1)] + ... + E_f[h(x; T)],   or   [E_f[h(x; 1)]; ...; E_f[h(x; T)]].

Two ids of a field share all rows with probability ``T! / m_f^T`` (sum) or ``m_f^-T`` (concat),
where one hash gives ``1 / m_f``; T tables of ``m_f / T`` rows would give ``(T / m_f)^T``.
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import nn

from recsys.embeddings.budget import owner_name
from recsys.embeddings.combine import ConcatRows, SumRows
from recsys.embeddings.fill import Part, fill_parts
from recsys.embeddings.hashed_fields import HashedFields, HashedFieldsConfig
from recsys.embeddings.id_map import HashRows
from recsys.embeddings.method import TableSpec
from recsys.features.hashing import salt
from recsys.types import InputError


class DoubleHashConfig(HashedFieldsConfig):
    """``lookups``: T (one is method ``hash``). ``operation``: ``sum``, or ``concat`` of T chunks of
    width D / T.

    Sizes by ``rows``, ``compression`` or ``budget``, see `HashedFieldsConfig`, all in rows of the
    full width: with ``concat`` each of them is T chunks, and ``m_f`` is T times as large. Vectors
    start with variance init_std^2, so rows that are summed with a T-th of it.
    """

    method: Literal["double_hash"]
    lookups: Annotated[int, Field(ge=2)] = 2
    operation: Literal["sum", "concat"] = "sum"

    @model_validator(mode="after")
    def _fits(self) -> DoubleHashConfig:
        if self.operation == "concat" and self.embedding_dim % self.lookups:
            raise ValueError(
                f"lookups {self.lookups} must divide embedding_dim {self.embedding_dim}: with "
                "operation concat a vector is that many chunks of equal width"
            )
        return self


class DoubleHash(HashedFields):
    """One table a layer: the rows of each field, one after another.

    Exact fields look up one row (concat: T chunks of their own). A layer narrower than T
    (first-order weights) cannot be cut into T chunks: its chunks have the layer's own width and are
    summed. Errors: those of `HashedFields`, and a layer width that T does not divide.
    """

    Config = DoubleHashConfig
    config: DoubleHashConfig

    def _row_words(self) -> int:
        return self._chunks() * sum(self._width(dim) for dim in self.dims.values())

    def _chunks(self) -> int:
        """Rows of a table that one row of the full width is cut into."""
        return self.config.lookups if self.config.operation == "concat" else 1

    def _width(self, dim: int) -> int:
        chunks = self._chunks()
        if dim < chunks:
            return dim
        if dim % chunks:
            raise InputError(
                f"embedding.lookups {chunks}: must divide the width {dim} of every layer of the "
                "model with operation concat; change lookups, operation or the model's width"
            )
        return dim // chunks

    def solution(self) -> dict[str, Any]:
        rows = self._chunks() * sum(self._sizes.values())
        return {"rows": rows, "lookups": self.config.lookups}

    def slots(self, f: int) -> tuple[int, ...]:
        field = self.fields[f]
        if field.kind == "numeric":
            return ()
        return (0,) * (self._chunks() if self._exact(owner_name(field)) else self.config.lookups)

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        rows = self._chunks() * sum(self._sizes.values())
        if not rows:
            return ()
        width, std = self._width(dim), self.config.init_std
        sums = width == dim  # either the operation, or a layer too narrow for chunks
        shared = std / sqrt(self.config.lookups) if sums else std
        single = std / sqrt(self._chunks()) if sums else std
        parts: list[Part] = [
            (
                self._chunks() * size,
                partial(nn.init.normal_, std=single if self._exact(name) else shared),
            )
            for name, size in self._sizes.items()
        ]
        return (TableSpec("double_hash", rows, width, partial(fill_parts, parts=parts)),)

    def row_map(self) -> nn.Module:
        starts, chunks = self._starts(), self._chunks()
        salts, moduli, offsets, strides = [], [], [], []
        for f, field in enumerate(self.fields):
            name = owner_name(field)
            for t in range(len(self.slots(f))):
                exact = self._exact(name)
                salts.append(salt(name, t))
                moduli.append(0 if exact else chunks * self._sizes[name])
                offsets.append(chunks * starts[name] + (t if exact else 0))
                strides.append(chunks)
        return HashRows(
            counts=self._counts(),
            singles=self._singles(),
            salts=salts,
            moduli=moduli,
            offsets=offsets,
            strides=strides,
        )

    def combine(self, dim: int) -> nn.Module:
        kind = SumRows if self._width(dim) == dim else ConcatRows
        return kind(counts=self._counts(), singles=self._singles())
