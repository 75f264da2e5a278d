"""Tables under a mask of single weights. Scriptable at every stage of a run."""

import torch
from torch import Tensor

from recsys.embeddings.compact import compact
from recsys.embeddings.store import FloatStore, Store
from recsys.selection.wrapped import WrappedStore


class MaskedStore(WrappedStore):
    """``store(rows) * mask[rows]``.

    **Shape:** rows (...) -> (..., width). Masked weights get no gradient.
    """

    mask: Tensor

    def __init__(self, *, store: FloatStore) -> None:
        super().__init__(store=store)
        self.register_buffer("mask", torch.ones(store.weight.shape, dtype=torch.bool))

    def forward(self, rows: Tensor) -> Tensor:
        return self.store(rows) * self.mask[rows.long()]  # (..., width)

    @torch.jit.unused
    def served(self) -> Tensor:
        """The table that lookups see in evaluation, (R, width)."""
        return self.weight.detach() * self.mask

    @torch.jit.unused
    @torch.no_grad()
    def close(self, kept: Tensor) -> None:
        """Masks all but ``kept`` (R, width), and sets what is masked to zero: L2 terms and global
        norms look at whole tables."""
        self.mask.copy_(kept)
        self.weight[~kept] = 0

    @torch.jit.unused
    def finalise(self) -> Store:
        return compact(self.served())
