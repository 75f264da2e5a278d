"""ROBE: one circular memory for all fields, of which an id reads a contiguous stretch.

Desai, Chou and Shrivastava, "Random Offset Block Embedding Array (ROBE) for CriteoTB Benchmark
MLPerf DLRM Model", MLSys 2022, https://arxiv.org/abs/2108.02191.

A vector of width D is cut into B blocks, each with one hash; block b of id x of field f is the
stretch of the memory that begins at the hash. Here the memory is M chunks of width Z and stretches
begin at chunks, so that a look-up fetches whole rows:

    e_f(x) = s_1 [E[p_1]; E[p_1 + 1]; ...], ..., s_B [E[p_B]; E[p_B + 1]; ...],
    p_b = mix(x + salt(f, b)) mod M,  places modulo M,  S = D / (B Z) chunks a block,

with an optional sign ``s_b`` in {-1, 1}, another bit of the same hash (Weinberger et al., "Feature
Hashing for Large Scale Multitask Learning", https://arxiv.org/abs/0902.2206), which makes what two
ids that meet tell each other zero on average. ``Z = 1`` is the published method, ROBE-(D / B), to
the letter; a wider chunk costs fewer look-ups.

Without signs and with as many hashes as chunks (S = 1) this is `unified` with ``lookups: B``, with
the very same rows. With one hash it hashes once and reads consecutively, but two ids that start at
one place share their whole vectors (probability 1 / M, for `unified` ``M^-T``), and those that
start closer than S share parts of them, in other positions. Two fields of 400 ids with independent
effects, 3200 floats, width 8 (AUC, two seeds; full table .871; signs change nothing):

    hashes 1, chunk 4   .826      hashes 2, chunk 4   .871      hashes 4, chunk 2   .871
    hashes 1, chunk 1   .858      unified, 2 lookups  .870
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import PositiveInt, model_validator
from torch import nn

from recsys.embeddings.budget import owner_name
from recsys.embeddings.combine import ConcatRows
from recsys.embeddings.method import TableSpec
from recsys.embeddings.one_table import OneTable, OneTableConfig
from recsys.embeddings.robe_rows import BlockRows, FirstRows, SignedStore
from recsys.embeddings.store import Store
from recsys.features.hashing import salt
from recsys.settings import TrainConfig
from recsys.types import InputError

NARROW = 4
"""Chunks are at least so wide unless the config says otherwise."""


class RobeConfig(OneTableConfig):
    """``hashes``: B, blocks of a vector; ``chunk``: Z, which divides the width of a block (default:
    the smallest divisor of it from 4 on, or the whole block). ``rows``: M; or ``budget`` (neither:
    10MB). ``sign``: whether a bit of the hash negates blocks; the rows are then no plain floats to
    selection and its like. ``exact_below``: fields of at most so many ids keep rows of their own,
    behind the M shared ones. The memory starts from U(-init_range, init_range).
    """

    method: Literal["robe"]
    hashes: PositiveInt = 1
    chunk: PositiveInt | None = None
    sign: bool = False

    @model_validator(mode="after")
    def _fits(self) -> RobeConfig:
        if self.embedding_dim % self.hashes:
            raise ValueError(
                f"hashes {self.hashes} must divide embedding_dim {self.embedding_dim}: a vector is "
                "that many blocks of equal width"
            )
        block = self.embedding_dim // self.hashes
        if self.chunk is not None and block % self.chunk:
            raise ValueError(f"chunk {self.chunk} must divide the width {block} of a block")
        if self.rows is not None and self.rows < self.steps:
            raise ValueError(f"rows {self.rows}: the memory must hold a block, {self.steps} chunks")
        return self

    @property
    def steps(self) -> int:
        """S: chunks of a block."""
        block = self.embedding_dim // self.hashes
        divisors = [z for z in range(NARROW, block) if block % z == 0]
        return block // (self.chunk or min(divisors, default=block))


class Robe(OneTable):
    """One table of M shared chunks, then the chunks of small fields.

    A layer narrower than a vector has chunks (first-order weights) has M rows of its own width, and
    sums the first of each block. Errors: as `OneTable`; the memory must hold a block.
    """

    Config = RobeConfig
    config: RobeConfig

    def pieces(self) -> dict[str, int]:
        return dict.fromkeys(self._owners, self.config.hashes * self.config.steps)

    @property
    def least(self) -> int:
        return self.config.steps

    @property
    def store(self) -> Callable[[TableSpec, TrainConfig], Store] | None:
        return SignedStore.of if self.config.sign else None

    def misfit(self, dim: int) -> InputError:
        return InputError(
            f"embedding.chunk: a vector is {self._most} chunks, which must divide the width "
            f"{dim} of every layer of the model; change chunk or the model's width"
        )

    def solution(self) -> dict[str, Any]:
        width = self.config.embedding_dim // self._most
        return {"rows": self._shared, "chunk": width, "chunks": self._most}

    def row_map(self) -> nn.Module:
        names = [owner_name(field) for field in self.fields if field.kind != "numeric"]
        blocks = [(name, b) for name in names for b in range(self.config.hashes)]
        hashed = [name not in self._exact for name, _ in blocks]
        steps, rows = self.config.steps, self._shared + self._exact_rows
        return BlockRows(
            counts=[0 if field.kind == "numeric" else self.config.hashes for field in self.fields],
            singles=self._singles(),
            steps=steps,
            salts=[salt(name, b) for name, b in blocks],
            moduli=[self._shared if h else 0 for h in hashed],
            offsets=[
                0 if h else self._shared + self._exact[name] + b * steps
                for (name, b), h in zip(blocks, hashed, strict=True)
            ],
            strides=[self._most] * len(blocks),
            mirrors=[rows if h and self.config.sign else 0 for h in hashed],
        )

    def combine(self, dim: int) -> nn.Module:
        if dim < self._most:
            return FirstRows(blocks=self.config.hashes, steps=self.config.steps)
        return ConcatRows(counts=self._counts(), singles=self._singles())
