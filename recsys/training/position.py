"""Where a run is, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass, field

History = list[dict[str, float]]


@dataclass(frozen=True)
class TrainResult:
    """``phases``: name -> one entry per judged epoch; ``rows_per_second``: training rows over
    training time, evaluation excluded; ``kept``: what ``train.monitor`` is on valid with the
    weights that stay, NaN without valid."""

    phases: dict[str, History]
    steps: int
    seconds: float
    rows_per_second: float
    kept: float

    @property
    def history(self) -> History:
        """One entry per judged epoch, phase after phase."""
        return [entry for entries in self.phases.values() for entry in entries]


@dataclass
class Position:
    """Everything about the place of a run that is no tensor; saved with each checkpoint."""

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0  # of the phase
    total_steps: int = 0
    train_seconds: float = 0.0
    train_rows: int = 0
    epoch_loss: float = 0.0
    history: dict[str, History] = field(default_factory=dict)
