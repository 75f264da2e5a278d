"""Gates of table rows, and tables behind gates. Scriptable at every stage of a run."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.store import FloatStore, TorchStore
from recsys.selection.wrapped import WrappedStore

START = 0.5
"""Where the logit of a learned gate starts; it closes at 0."""


class RowGates(nn.Module):
    """One factor per row of a table. **Shape:** rows (...) -> (..., 1)."""

    def factors(self) -> Tensor:
        """The factor of every row, (R, 1); exactly 0 where it is closed for good."""
        raise NotImplementedError

    def set_open(self, kept: Tensor) -> None:
        """Opens the rows ``kept`` (R,) bool and closes all others, for good."""
        raise NotImplementedError

    def harden(self) -> None:
        """Gates that learn stop learning; the trainer resumes a run behind this point by it."""


class GatedStore(WrappedStore):
    """``store(rows) * gate(rows)``."""

    def __init__(self, *, store: FloatStore, gate: RowGates) -> None:
        super().__init__(store=store)
        self.gate = gate

    def forward(self, rows: Tensor) -> Tensor:
        return self.store(rows) * self.gate(rows)  # (..., width)

    @torch.jit.unused
    def finalise(self) -> TorchStore:
        """The serving form with all rows, gates multiplied in."""
        weight = self.weight.detach() * self.gate.factors().detach()
        return TorchStore(weight=weight, sparse=False, zero_row=self.padding >= 0)

    @torch.jit.unused
    def packed(self, kept: Tensor) -> TorchStore:
        """The rows ``kept`` (R,), gates multiplied in, then one row of zeros."""
        weight = self.finalise().weight.detach()[kept]
        return TorchStore(weight=F.pad(weight, (0, 0, 0, 1)), sparse=False, zero_row=True)


class RowMask(RowGates):
    """Gates that are open (1) or closed (0) and learn nothing."""

    open: Tensor

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.register_buffer("open", torch.ones(rows, 1))

    def forward(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.open)

    @torch.jit.unused
    def factors(self) -> Tensor:
        return self.open

    @torch.jit.unused
    def set_open(self, kept: Tensor) -> None:
        self.open.copy_(kept.unsqueeze(1))


class ValueGates(RowGates):
    """``sigmoid(temperature * logits) / sigmoid(0.5)``, or, once ``hard``, 0 or ``open_factor``.

    **Shape:** rows (...) -> (..., 1).
    """

    temperature: Tensor
    unit: Tensor

    def __init__(self, rows: int, *, open_factor: Optional[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.full((rows, 1), START))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("unit", torch.sigmoid(torch.tensor(START)), persistent=False)
        self.open_factor: float = float(1 / self.unit) if open_factor is None else open_factor
        self.hard: bool = False

    def factor(self, logits: Tensor) -> Tensor:
        """Factors of ``logits``, of the same shape."""
        if self.hard:
            return (logits > 0).to(logits.dtype) * self.open_factor
        return torch.sigmoid(self.temperature * logits) / self.unit

    def forward(self, rows: Tensor) -> Tensor:
        return self.factor(F.embedding(rows, self.logits))

    @torch.jit.unused
    def is_open(self) -> Tensor:
        """(R,) bool: the logit is above the threshold."""
        return self.logits.detach().squeeze(1) > 0

    @torch.jit.unused
    def factors(self) -> Tensor:
        return self.factor(self.logits)

    @torch.jit.unused
    @torch.no_grad()
    def set_open(self, kept: Tensor) -> None:
        """Keeps the logits of rows that already are what they should be."""
        wrong = self.is_open() != kept
        self.logits[wrong] = torch.where(kept, START, -START)[wrong].unsqueeze(1)
        self.harden()

    @torch.jit.unused
    def harden(self) -> None:
        """From now on 0 or ``open_factor``, and fixed."""
        self.hard = True
        self.logits.requires_grad_(False)
