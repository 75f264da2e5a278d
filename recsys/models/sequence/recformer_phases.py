"""The phases of a model whose items are encoded from text. The model learns the task that its phase
is called by."""

from __future__ import annotations

from collections.abc import Sequence
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
    Each epoch is judged by ranking the catalogue as it is encoded then."""

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        _model(loop).encode_items()
        return {}


class FineTune(TextPhase):
    """Softmax over the catalogue as it was encoded before the epoch; the best epoch keeps its
    catalogue with its weights."""

    judges_start = True

    def start_epoch(self, loop: Loop, epoch: int) -> None:
        _model(loop).encode_items()


class FixedItems(TextPhase):
    """Softmax over the catalogue of the phase before, which stays as it is."""

    judges_start = True


def text_phases(names: Sequence[str], epochs: int, *, rate: float) -> list[Phase]:
    """Those of these names; ``rate``: of all but pretraining."""
    kinds = {FINE_TUNE: FineTune, FIXED_ITEMS: FixedItems}
    return [
        Pretrain(name, epochs) if name == PRETRAIN else kinds[name](name, epochs, rate=rate)
        for name in names
    ]


def _model(loop: Loop) -> Any:
    return loop.model
