"""What selections share after the search: earlier weights, and training with closed rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.embeddings.store import FLOAT_BYTES
from recsys.training.phase import Loop, Phase


class Closes(Protocol):
    """What the classes below use of a selection."""

    def gate_tensors(self) -> set[int]:
        """Ids of the tensors that say what is kept: gates, masks, thresholds."""

    def chosen(self) -> list[Tensor]:
        """What should stay, as things are now, table by table."""

    def close(self, kept: Sequence[Tensor]) -> None:
        """Closes all but ``kept`` for good."""

    def harden(self) -> None:
        """Nothing of the selection learns from now on."""


class Snapshot:
    """Copies of all weights and buffers of a model but its gates; empty until taken."""

    def __init__(self, selection: Closes) -> None:
        self._selection = selection
        self.tensors: dict[str, Tensor] = {}

    def take(self, model: nn.Module) -> None:
        """Copies the present weights."""
        gates = self._selection.gate_tensors()
        self.tensors = {
            name: tensor.detach().clone()
            for name, tensor in model.state_dict(keep_vars=True).items()
            if id(tensor) not in gates
        }

    def restore(self, model: nn.Module) -> None:
        """Puts the copies back, bit for bit, and forgets them."""
        assert self.tensors, "nothing was copied"
        missing, unexpected = model.load_state_dict(self.tensors, strict=False)
        gates = self._selection.gate_tensors()
        live = model.state_dict(keep_vars=True)
        assert not unexpected
        assert all(id(live[name]) in gates for name in missing)
        self.tensors = {}


def snapshot_bytes(layers: Sequence[EmbeddingLayer]) -> int:
    """Bytes of the trained tensors of ``layers`` that a `Snapshot` copies."""
    return FLOAT_BYTES * sum(t.numel() for layer in layers for t in layer.trained())


class Retrain(Phase):
    """Trains what is kept. What is closed gives exact zeros, and no gradient reaches it.

    ``start`` closes what the phase before has decided to close, for good, and puts the weights of
    ``snapshot`` back if there are any.
    """

    def __init__(self, selection: Closes, snapshot: Snapshot, name: str, max_epochs: int) -> None:
        super().__init__(name, max_epochs)
        self._selection = selection
        self._snapshot = snapshot

    def start(self, loop: Loop) -> None:
        kept = self._selection.chosen()
        if self._snapshot.tensors:
            self._snapshot.restore(loop.model)
        self._selection.close(kept)

    def enter(self, loop: Loop) -> None:
        self._selection.harden()
