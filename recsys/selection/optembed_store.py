"""Tables whose rows close below a learned threshold, and whose vectors lose their last columns."""

from typing import List, Sequence

import torch
from torch import Tensor, nn

from recsys.embeddings.store import FloatStore
from recsys.selection.masked import MaskedStore

MOMENTUM = 0.05
"""How far one batch moves the running mean norms."""
SMALLEST = 1e-12


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

        sum over ``stores`` of ||e_n||_1  >  threshold * unit    of the feature that owns n.

    The unit is 1 or, once `measure` was called, the mean norm of the feature's rows in training
    lookups, a running one: norms depend on width, start, L2 and rate, thresholds then do not.
    Lookups that the loss does not reach (padding of lists) are left out of it.
    ``owner`` (R,): place of that feature in ``thresholds``, or -1.
    """

    owner: Tensor
    rows: Tensor
    unit: Tensor
    measured: Tensor

    def __init__(self, *, stores: Sequence[FloatStore], owner: Tensor, features: int) -> None:
        super().__init__()
        self.thresholds = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.register_buffer("owner", owner, persistent=False)
        self.register_buffer(
            "rows", torch.bincount(owner[owner >= 0], minlength=features), persistent=False
        )
        self.register_buffer("unit", torch.ones(features))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool))
        self.stores: List[FloatStore] = list(stores)  # of their layers, not submodules of this

    def gates(self, rows: Tensor, vectors: Tensor, place: int) -> Tensor:
        """0 or 1, (..., 1), of rows (...); ``vectors`` (..., width): what store ``place`` has."""
        norm = vectors.abs().sum(-1)
        for other, store in enumerate(self.stores):
            if other != place:
                norm = norm + store(rows).abs().sum(-1)
        owner = self.owner[rows.long()].clamp_min(0)
        gates = step(norm / self.unit[owner] - self.thresholds[owner]).unsqueeze(-1)
        if self.training and place == 0 and self.measured and gates.requires_grad:
            seen = norm.detach()
            gates.register_hook(lambda grad: self._follow(seen, owner, grad.squeeze(-1) != 0))
        return gates

    @torch.no_grad()
    def measure(self) -> None:
        """From now on in units of mean norms, beginning with those of all rows."""
        norm, owner = self.norms(), self.owner.clamp_min(0)
        total = torch.zeros_like(self.unit).index_add_(0, owner, norm * (self.owner >= 0))
        self.unit.copy_((total / self.rows.clamp_min(1)).clamp_min(SMALLEST))
        self.measured.fill_(True)

    @torch.no_grad()
    def margins(self) -> Tensor:
        """Norm, in its unit, less threshold of every row, (R,); minus infinity for rows that no id
        leads to."""
        owner = self.owner.clamp_min(0)
        margin = self.norms() / self.unit[owner] - self.thresholds[owner]
        return torch.where(self.owner >= 0, margin, -torch.inf)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """L1 norm of every row over all stores, (R,)."""
        return torch.stack([store.weight.abs().sum(1) for store in self.stores]).sum(0)

    @torch.no_grad()
    def _follow(self, norm: Tensor, owner: Tensor, reached: Tensor) -> None:
        owner, norm = owner[reached], norm[reached]  # (N,)
        total = torch.zeros_like(self.unit).index_add_(0, owner, norm)
        count = torch.bincount(owner, minlength=len(self.unit))
        mean = torch.where(count > 0, total / count.clamp_min(1), self.unit)
        self.unit.lerp_(mean, MOMENTUM).clamp_min_(SMALLEST)


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
