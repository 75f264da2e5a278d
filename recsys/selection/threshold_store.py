"""Tables whose weights are thresholded softly, by thresholds that learn."""

from typing import List

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.store import FloatStore
from recsys.selection.masked import MaskedStore

START = -15.0
"""Of threshold logits. sigmoid(-15) is 3e-7, and so is its slope; at -150, as sometimes seen, both
are exactly 0 in float32 and nothing ever learns."""


def soft_threshold(values: Tensor, logits: Tensor) -> Tensor:
    """``sign(v) relu(|v| - sigmoid(s))``.

    **Shape** values (..., width), logits that broadcast -> (..., width).

    **Example**

    >>> import torch
    >>> soft_threshold(torch.tensor([0.7, -0.7, 0.4]), torch.zeros(1))
    tensor([ 0.2000, -0.2000,  0.0000])
    """
    return torch.sign(values) * torch.relu(values.abs() - torch.sigmoid(logits))


class ThresholdStore(MaskedStore):
    """While ``searching``: looked-up rows, thresholded; before and afterwards the mask alone.

    ``logits``: s, of shape (1, 1), (1, width), (R, 1) or (R, width). Only looked-up rows are
    thresholded, and only they give their thresholds a gradient.
    **Shape:** rows (...) -> (..., width).
    """

    def __init__(self, *, store: FloatStore, shape: List[int]) -> None:
        super().__init__(store=store)
        self.logits = nn.Parameter(torch.full(shape, START), requires_grad=False)
        self.by_row: bool = shape[0] > 1
        self.searching: bool = False

    def forward(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.store(rows)  # (..., width)
        if self.searching:
            logits = F.embedding(rows.long(), self.logits) if self.by_row else self.logits[0]
            return soft_threshold(vectors, logits)
        return vectors * self.mask[rows.long()]

    @torch.jit.unused
    def margins(self) -> Tensor:
        """``|v| - sigmoid(s)`` of all weights, (R, width): above 0 where one is open."""
        return self.weight.detach().abs() - torch.sigmoid(self.logits.detach())

    @torch.jit.unused
    def served(self) -> Tensor:
        if self.searching:
            return soft_threshold(self.weight.detach(), self.logits.detach())
        return super().served()

    @torch.jit.unused
    def search(self, on: bool) -> None:
        """Whether thresholds hold and learn, or the mask holds."""
        self.searching = on
        self.logits.requires_grad_(on)
