"""Popular ids to rows of their own, all others to hashed rows; scriptable."""

from typing import Sequence

import torch
from torch import Tensor

from recsys.embeddings.id_map import Spans
from recsys.features.hashing import splitmix64


class PopularRows(Spans):
    """Slot s: ``id * stride_s + own_s`` if ``id < bound_s``, else
    ``(splitmix64(id + salt_s) mod 2^63) mod modulus_s + offset_s``.

    A popular id needs one row: its other slots have stride 0 and the table's zero row as ``own``.
    """

    bound: Tensor
    own: Tensor
    stride: Tensor
    salt: Tensor
    modulus: Tensor
    offset: Tensor

    def __init__(
        self,
        *,
        counts: Sequence[int],
        singles: int,
        bounds: Sequence[int],
        owns: Sequence[int],
        strides: Sequence[int],
        salts: Sequence[int],
        moduli: Sequence[int],
        offsets: Sequence[int],
    ) -> None:
        super().__init__(counts=counts, singles=singles)
        self.keep(
            bound=bounds, own=owns, stride=strides, salt=salts, modulus=moduli, offset=offsets
        )

    def forward(self, ids: Tensor, f: int) -> Tensor:
        start, n = self.span(f)
        ids = self.spread(ids, f)
        mixed = splitmix64(ids + self.salt.narrow(0, start, n)) & 0x7FFFFFFFFFFFFFFF
        tail = mixed % self.modulus.narrow(0, start, n) + self.offset.narrow(0, start, n)
        own = ids * self.stride.narrow(0, start, n) + self.own.narrow(0, start, n)
        return torch.where(ids < self.bound.narrow(0, start, n), own, tail)  # (..., n)
