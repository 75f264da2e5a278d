"""Tables whose rows close below a learned threshold, and whose vectors lose their last columns."""

from typing import List, Sequence

import torch
from torch import Tensor, nn

from recsys.embeddings.store import FloatStore
from recsys.selection.masked import MaskedStore


def step(x: Tensor) -> Tensor:
    """1 where ``x > 0``, else 0; its gradient is the long-tailed surrogate of OptEmbed:
    ``2 - 4 |x|`` up to |x| = 0.4, then 0.4 up to 1, then 0.

    **Shape** any -> the same.

    **Example**

    >>> import torch
    >>> x = torch.tensor([0.2, -0.7, 1.5], requires_grad=True)
    >>> step(x).tolist()
    [1.0, 0.0, 1.0]
    >>> step(x).sum().backward()
    >>> [round(slope, 6) for slope in x.grad.tolist()]
    [1.2, 0.4, 0.0]
    """
    size, sign = x.abs(), torch.sign(x)
    steep = 2 * x - 2 * x * size
    flat = torch.where(size <= 1, 0.4 * x + 0.32 * sign, 0.72 * sign)
    soft = torch.where(size <= 0.4, steep, flat)  # an antiderivative of the slopes
    return (x > 0).to(x.dtype) + (soft - soft.detach())


class RowThresholds(nn.Module):
    """Row n of one table, which all layers have in common, is open while

        sum over ``stores`` of ||e_n||_1  >  threshold of the feature that owns n.

    ``owner`` (R,): place of that feature in ``thresholds``, or -1.
    """

    owner: Tensor

    def __init__(self, *, stores: Sequence[FloatStore], owner: Tensor, features: int) -> None:
        super().__init__()
        self.thresholds = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.register_buffer("owner", owner, persistent=False)
        self.stores: List[FloatStore] = list(stores)  # of their layers, not submodules of this

    def gates(self, rows: Tensor, vectors: Tensor, place: int) -> Tensor:
        """0 or 1, (..., 1), of rows (...); ``vectors`` (..., width): what store ``place`` has."""
        norm = vectors.abs().sum(-1)
        for other, store in enumerate(self.stores):
            if other != place:
                norm = norm + store(rows).abs().sum(-1)
        owner = self.owner[rows.long()].clamp_min(0)
        return step(norm - self.thresholds[owner]).unsqueeze(-1)

    @torch.no_grad()
    def margins(self) -> Tensor:
        """Norm less threshold of every row, (R,); minus infinity for rows that no id leads to."""
        norm = torch.stack([store.weight.abs().sum(1) for store in self.stores]).sum(0)
        margin = norm - self.thresholds[self.owner.clamp_min(0)]
        return torch.where(self.owner >= 0, margin, -torch.inf)


class SupernetStore(MaskedStore):
    """While ``searching``: ``store(rows)`` times the gate of its row and, in training, a prefix of
    its columns of a width drawn for each example and lookup; afterwards the mask alone.

    The positions of a list are one feature of one example, so they share a width.
    """

    def __init__(self, *, store: FloatStore, gate: RowThresholds, place: int) -> None:
        super().__init__(store=store)
        self.gate = gate
        self.place: int = place
        self.searching: bool = False

    def forward(self, rows: Tensor) -> Tensor:
        if self.searching:
            return self.searched(rows)
        return self.store(rows) * self.mask[rows.long()]  # (..., width)

    @torch.jit.unused
    def searched(self, rows: Tensor) -> Tensor:
        """What `forward` gives while the supernet trains; never served, so never scripted."""
        vectors: Tensor = self.store(rows)  # (..., width)
        vectors = vectors * self.gate.gates(rows, vectors, self.place)
        return vectors * self.drawn(rows) if self.training else vectors

    @torch.jit.unused
    def served(self) -> Tensor:
        table = super().served()
        return table * (self.gate.margins() > 0).unsqueeze(1) if self.searching else table

    @torch.jit.unused
    def drawn(self, rows: Tensor) -> Tensor:
        """Prefix masks (..., width) bool, of widths drawn evenly from 1 .. width."""
        width = self.mask.size(1)
        shape = list(rows.shape)
        if rows.dim() == 3:  # (B, L, T): one width for all positions
            shape[1] = 1
        last = torch.randint(width, [*shape, 1], device=rows.device)
        return torch.arange(width, device=rows.device) <= last
