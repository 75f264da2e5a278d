"""What row selections share after the search: earlier weights, and training with closed rows."""

from __future__ import annotations

from torch import Tensor, nn

from recsys.selection.rows import RowSelection
from recsys.training.phase import Loop, Phase


class Snapshot:
    """Copies of all weights and buffers of a model but its gates; empty until taken."""

    def __init__(self, selection: RowSelection) -> None:
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


class Retrain(Phase):
    """Trains what is kept. Closed rows give exact zeros, and no gradient reaches them.

    ``start`` closes what the phase before has decided to close, for good, and puts the weights of
    ``snapshot`` back if there are any.
    """

    def __init__(
        self, selection: RowSelection, snapshot: Snapshot, name: str, max_epochs: int
    ) -> None:
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
