"""Tables whose columns are scaled by one learned factor per block of rows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.store import FloatStore
from recsys.selection.masked import MaskedStore


class ScaledStore(MaskedStore):
    """While ``searching``: ``store(rows) * alpha[block of each row]``; afterwards the mask alone.

    ``alpha`` (G, width) starts at 1. ``block`` (R,) uint8: block of each row.
    **Shape:** rows (...) -> (..., width).
    """

    block: Tensor

    def __init__(self, *, store: FloatStore, block: Tensor, blocks: int) -> None:
        super().__init__(store=store)
        self.alpha = nn.Parameter(torch.ones(blocks, store.weight.size(1)), requires_grad=False)
        self.register_buffer("block", block.to(torch.uint8), persistent=False)
        self.searching: bool = False

    def forward(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.store(rows)  # (..., width)
        if self.searching:
            return vectors * F.embedding(self.block[rows.long()].long(), self.alpha)
        return vectors * self.mask[rows.long()]

    @torch.jit.unused
    def products(self) -> Tensor:
        """``alpha x E``, (R, width): what a weight is worth, whatever the split between the two."""
        return self.weight.detach() * self.alpha.detach()[self.block.long()]

    @torch.jit.unused
    def served(self) -> Tensor:
        return self.products() if self.searching else super().served()

    @torch.jit.unused
    @torch.no_grad()
    def close(self, kept: Tensor) -> None:
        """Multiplies ``alpha`` into the table, then masks all but ``kept`` (R, width)."""
        self.weight.copy_(self.products())
        self.alpha.fill_(1.0)
        super().close(kept)

    @torch.jit.unused
    def search(self, on: bool) -> None:
        """Whether factors scale and learn, or the mask holds."""
        self.searching = on
        self.alpha.requires_grad_(on)
