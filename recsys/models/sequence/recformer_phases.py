"""The phases of a model whose items are encoded from text. The model learns the task that its phase
is called by."""

from __future__ import annotations

from typing import Any

from recsys.training.phase import Loop, Phase
from recsys.types import Metrics

PRETRAIN, FINE_TUNE, FIXED_ITEMS = "pretrain", "fine_tune", "fixed_items"


class TextPhase(Phase):
    """Tells the model its task, and which parts have no say in it."""

    def enter(self, loop: Loop) -> None:
        model = _model(loop)
        model.task = self.name
        for part in model.pretraining_only():
            part.requires_grad_(self.name == PRETRAIN)


class Pretrain(TextPhase):
    """Histories find the next item's text among those of the batch, and hidden words are guessed.
    Each epoch is judged by ranking the catalogue, as the later phases are."""

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        _model(loop).encode_items()
        return {}


class FineTune(TextPhase):
    """Softmax over the catalogue as it was encoded before the epoch; the best epoch keeps its
    catalogue with its weights."""

    def start_epoch(self, loop: Loop, epoch: int) -> None:
        _model(loop).encode_items()


class FixedItems(TextPhase):
    """Softmax over the best catalogue of the phase before, which stays as it is."""


def text_phases(
    *, pretrain_epochs: int, epochs: int, rate: float, fixed_epochs: int
) -> list[Phase]:
    """The three, without those that have no epochs; ``rate``: of the second."""
    plan = [
        Pretrain(PRETRAIN, pretrain_epochs),
        FineTune(FINE_TUNE, epochs, rate=rate),
        FixedItems(FIXED_ITEMS, fixed_epochs),
    ]
    return [phase for phase in plan if phase.max_epochs]


def _model(loop: Loop) -> Any:
    return loop.model
