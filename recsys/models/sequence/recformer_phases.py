"""The phases of a model whose items are encoded from text."""

from __future__ import annotations

from typing import Any

from recsys.training.phase import Loop, Phase
from recsys.types import Metrics


class Pretrain(Phase):
    """Histories find the next item's text among those of the batch, and hidden words are guessed.
    Each epoch is judged by ranking the catalogue, as the later phases are."""

    def enter(self, loop: Loop) -> None:
        _task(loop, contrastive=True)

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        _model(loop).encode_items()
        return {}


class FineTune(Phase):
    """Softmax over the catalogue as it was encoded before the epoch; the best epoch keeps its
    catalogue with its weights."""

    def enter(self, loop: Loop) -> None:
        _task(loop, contrastive=False)
        _model(loop).live = True

    def start_epoch(self, loop: Loop, epoch: int) -> None:
        _model(loop).encode_items()


class FixedItems(Phase):
    """Softmax over the best catalogue of the phase before, which stays as it is."""

    def enter(self, loop: Loop) -> None:
        _task(loop, contrastive=False)
        _model(loop).live = False


def _model(loop: Loop) -> Any:
    return loop.model


def _task(loop: Loop, *, contrastive: bool) -> None:
    model = _model(loop)
    model.contrastive = contrastive
    for part in model.pretraining_only():
        part.requires_grad_(contrastive)
