"""ROBE's arithmetic: one hash gives the place of several consecutive rows, and perhaps a sign."""

from typing import List, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.id_map import Spans
from recsys.embeddings.method import TableSpec
from recsys.embeddings.store import FLOAT_BYTES, Store, is_sparse, training_bytes
from recsys.features.hashing import splitmix64
from recsys.settings import TrainConfig
from recsys.types import MemoryReport


class BlockRows(Spans):
    """Consecutive rows: block b of an id has the rows ``(start_b + j) mod M``, j = 0 .. S - 1, with
    ``start_b = (splitmix64(id + salt_b) mod 2^63) mod M``.

    Where ``modulus_b`` is 0, the id has rows of its own instead: ``id * stride_b + offset_b + j``.
    The hash has a 64th bit, which `splitmix64` leaves as good as any other and the place does not
    use: where it is set and ``mirror_b`` is not 0, rows are ``mirror_b`` further, which
    `SignedStore` reads as the same rows, negated.

    ``counts``: blocks (not rows) of each field; ``steps``: S.
    """

    salt: Tensor
    modulus: Tensor
    offset: Tensor
    stride: Tensor
    mirror: Tensor
    step: Tensor

    def __init__(
        self,
        *,
        counts: Sequence[int],
        singles: int,
        steps: int,
        salts: Sequence[int],
        moduli: Sequence[int],
        offsets: Sequence[int],
        strides: Sequence[int],
        mirrors: Sequence[int],
    ) -> None:
        super().__init__(counts=counts, singles=singles)
        self.keep(salt=salts, modulus=moduli, offset=offsets, stride=strides, mirror=mirrors)
        self.keep(step=range(steps))

    def forward(self, ids: Tensor, f: int) -> Tensor:
        start, n = self.span(f)
        ids = self.spread(ids, f)
        modulus = self.modulus.narrow(0, start, n)
        hashed = modulus > 0
        mixed = splitmix64(ids + self.salt.narrow(0, start, n))  # (..., n)
        place = (mixed & 0x7FFFFFFFFFFFFFFF) % modulus.clamp_min(1)
        own = ids * self.stride.narrow(0, start, n) + self.offset.narrow(0, start, n)
        place = torch.where(hashed, place, own)
        rows = place.unsqueeze(-1) + self.step  # (..., n, S)
        wraps = (rows >= modulus.unsqueeze(-1)) & hashed.unsqueeze(-1)
        rows = torch.where(wraps, rows - modulus.unsqueeze(-1), rows)
        mirror = torch.where(mixed < 0, self.mirror.narrow(0, start, n), 0)
        return (rows + mirror.unsqueeze(-1)).flatten(-2, -1)  # (..., n * S)


class FirstRows(nn.Module):
    """One table, blocks of ``steps`` rows: the sum of the first row of each of an id's ``blocks``.

    For layers too narrow to be cut into chunks: further rows of a block would only repeat what the
    first says about the id's place.
    """

    linear: bool = True

    def __init__(self, *, blocks: int, steps: int) -> None:
        super().__init__()
        self.blocks: int = blocks
        self.steps: int = steps

    def forward(self, vectors: List[Tensor], f: int) -> Tensor:
        rows = vectors[0].unflatten(-2, [-1, self.blocks, self.steps])  # (..., C, blocks, S, d)
        return rows.select(-2, 0).sum(-2)  # (..., C, d)


class SignedStore(Store):
    """R rows of floats with 2 R names: row ``r + R`` is row ``r`` times -1.

    **Shape:** rows (...) int32 or int64 -> (..., width).
    """

    weight: Tensor

    def __init__(self, *, weight: Tensor, sparse: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.rows: int = weight.size(0)
        self.sparse = sparse
        self.fused = False
        self.padding = -1

    @staticmethod
    def of(spec: TableSpec, train: TrainConfig) -> Store:
        """The table that ``spec`` describes."""
        weight = torch.empty(spec.rows, spec.width)
        spec.fill(weight)
        return SignedStore(weight=weight, sparse=is_sparse(spec, train))

    def forward(self, rows: Tensor) -> Tensor:
        negated = rows >= self.rows
        vectors = F.embedding(
            torch.where(negated, rows - self.rows, rows), self.weight, sparse=self.sparse
        )
        sign = 1 - 2 * negated.to(vectors.dtype)
        return vectors * sign.unsqueeze(-1)

    @torch.jit.unused
    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        rows, width = self.weight.shape
        touched: Optional[int] = min(rows, fetched) if self.sparse else None
        training = training_bytes(
            rows=rows, width=width, optimizer=train.table_optimizer, touched=touched
        )
        return MemoryReport(rows * width, FLOAT_BYTES * rows * width, training, 0)

    @torch.jit.unused
    def finalise(self) -> "SignedStore":
        """The serving form, in the same memory."""
        return SignedStore(weight=self.weight.detach(), sparse=False)
