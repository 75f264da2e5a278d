"""One row of integers per id: a quarter or half of the full table's bytes, in training too.

The table never is anything but integers; updates are rounded stochastically (Gupta et al.,
https://arxiv.org/abs/1502.02551): see `recsys.embeddings.integer_store`. For tables that are
quantised after training see `recsys.embeddings.post_training`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import PositiveFloat

from recsys.embeddings.budget import fixed_bytes, refuse
from recsys.embeddings.full import Full
from recsys.embeddings.integer_rows import OneScale, RowExponents, Scale
from recsys.embeddings.integer_store import IntegerStore
from recsys.embeddings.method import TableConfig, TableSpec
from recsys.embeddings.store import Store
from recsys.settings import TrainConfig


class IntegerTableConfig(TableConfig):
    """Base of configs whose tables are integers in training."""


class IntegerConfig(IntegerTableConfig):
    """``scale``: what one unit of a code is worth. ``row``: a power of two for each row, one byte
    of it, which follows the row's largest weight; a number: the same for all rows, such as the .01
    of Zhang et al. (VLDB 2024), with weights beyond it times 127 (32,767) cut off. The AUC of a
    factorisation machine on a planted log (`tests/embeddings/planted_table.py`): floats .7769, int8
    by row .7766, with .01 for all rows .7725.

    With a ``budget``, ``embedding_dim`` is an upper limit, as in ``full``. Weights start from
    N(0, init_std^2), rounded.
    """

    scale: Literal["row"] | PositiveFloat = "row"


class Int8Config(IntegerConfig):
    __doc__ = IntegerConfig.__doc__

    method: Literal["int8"]


class Int16Config(IntegerConfig):
    __doc__ = IntegerConfig.__doc__

    method: Literal["int16"]


class IntegerTable(Full):
    """Rows as in `Full`, held as integers. A subclass says how wide codes and scales are."""

    config: Any

    @abstractmethod
    def scale_bytes(self) -> int:
        """Bytes of a row's own scale."""

    @abstractmethod
    def store(self, spec: TableSpec, train: TrainConfig) -> Store:
        """The table of ``spec``."""

    @property
    def bits(self) -> int:
        """Bits of one code."""
        raise NotImplementedError

    def _cost(self, dims: Mapping[str, int]) -> int:
        slots = sum(self._counts())
        row = sum(dim * self.bits // 8 + self.scale_bytes() for dim in dims.values())
        return fixed_bytes(self.fields, dims, slots=slots) + self._rows * row

    def _fitted(self, budget: int) -> dict[str, int]:
        widest = self.config.embedding_dim
        for width in range(widest, 0, -1):
            dims = {name: width if d == widest else d for name, d in self.dims.items()}
            if self._cost(dims) <= budget:
                return dims
        raise refuse(budget, self._cost(dims), f"embedding.method {self.config.method}")

    def tables(self, dim: int) -> tuple[TableSpec, ...]:
        name = self.config.method
        return tuple(replace(s, name=name, store=self.store) for s in super().tables(dim))


class _Integers(IntegerTable):
    def scale_bytes(self) -> int:
        return RowExponents.bytes_per_row if self.config.scale == "row" else 0

    def store(self, spec: TableSpec, train: TrainConfig) -> Store:
        by_row = self.config.scale == "row"
        scale: Scale = RowExponents(spec.rows) if by_row else OneScale(self.config.scale)
        return IntegerStore(spec=spec, train=train, bits=self.bits, scale=scale)


class Int8(_Integers):
    """int8 codes: a row of width d takes d bytes, and one for its scale."""

    Config: ClassVar[type[TableConfig]] = Int8Config
    bits = 8


class Int16(_Integers):
    """int16 codes: a row of width d takes 2 d bytes, and one for its scale."""

    Config: ClassVar[type[TableConfig]] = Int16Config
    bits = 16
