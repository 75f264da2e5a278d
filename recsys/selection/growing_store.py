"""A masked table whose masked weights get gradients, too, though they stay zero."""

import torch
from torch import Tensor

from recsys.embeddings.store import FloatStore
from recsys.selection.masked import MaskedStore


class GrowingStore(MaskedStore):
    """``store(rows) * mask[rows]``; while ``growing``, the gradient goes past the mask."""

    def __init__(self, *, store: FloatStore) -> None:
        super().__init__(store=store)
        self.growing: bool = False

    def forward(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.store(rows)  # (..., width)
        mask = self.mask[rows.long()]
        if self.growing:
            return vectors - (vectors * torch.logical_not(mask)).detach()
        return vectors * mask
