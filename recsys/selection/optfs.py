"""OptFS: learned gates on feature values, then a retrain of the values whose gates stayed open.

Lyu et al., "Optimizing Feature Set for Click-Through Rate Prediction", WWW 2023,
https://arxiv.org/abs/2301.10909. Selecting interactions comes for free: the gate of a pair is the
product of the gates of its two values.

Each row n of a table (see `recsys.selection.rows`) has a logit w_n, 0.5 at the start, and a gate

    g_n = sigmoid(tau * w_n) / sigmoid(0.5),    tau = gamma^(e / (E - 1)) in epoch e of E,

exactly 1 at the start and close to a step at 0 in the end (learning by continuation). A penalty
pulls all logits down, the data pull up those that help. After the last search epoch the rows with
``w_n > 0`` stay; the weights go back to where they were at the start of ``rewind_epoch``, and the
model is retrained without penalty, with the gates fixed at 0 or 1.

**The penalty.** It joins the loss as ``strength * mean_n sigmoid(tau * w_n)``, over all rows of all
tables, so ``strength`` is in nats: what the model would pay if every gate were wide open. A value
stays where it lowers the loss by more than its share, ``strength / N``. The published penalty is
``lambda * sum_n``, and its gradient (5e-10) lies below Adam's epsilon (1e-8): what a lambda does
then depends on the epsilon, the rate and the number of steps, and on a small log nothing closes.
Here the gates have an Adam of their own, with an epsilon that no gradient falls below and the rate
``gate_step / S`` for S steps an epoch: ``gate_step`` is how far a logit, which starts 0.5 above the
threshold, can move in one epoch, for any number of steps. (Small batches have noisier gradients,
and their search takes more epochs to tell small effects from none.) Gates are dense parameters, so
the penalty meets every row at every step also where tables are trained row-sparse; a row that
training never sees falls at full rate and closes in ``0.5 / gate_step`` epochs. Gates have no
weight decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from recsys.selection.gates import ValueGates
from recsys.selection.retrain import Retrain, Snapshot, snapshot_bytes
from recsys.selection.rows import RowSelection
from recsys.training import plots
from recsys.training.optimizers import ParameterGroup
from recsys.training.phase import Loop, Phase
from recsys.types import FrozenConfig, Metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_GATE_STEP = 0.2
EPS = 1e-20


class OptFSConfig(FrozenConfig):
    """``strength``: nats of the penalty if all gates were open. ``gate_step``: how far a gate's
    logit can move in one epoch; it starts at 0.5 and closes at 0. ``temperature``: gamma, of the
    last search epoch. ``search_epochs`` all run, then the retrain follows ``train``
    (``max_epochs``, ``patience``). ``rewind_epoch``: from 0; the retrain goes on from the weights
    at its start (0: the initial ones).

    ``paper``: as published: ``strength`` is lambda, of a sum over rows; gates have the rate
    ``train.learning_rate`` and Adam's epsilon 1e-8; open gates are ``1 / sigmoid(0.5)`` in the
    retrain, not 1.
    """

    method: Literal["optfs"]
    strength: Annotated[float, Field(ge=0)]
    gate_step: PositiveFloat | None = None
    temperature: Annotated[float, Field(gt=1)] = 1000.0
    search_epochs: Annotated[int, Field(ge=2)] = 10
    rewind_epoch: Annotated[int, Field(ge=0)] = 0
    paper: bool = False

    @model_validator(mode="after")
    def _can_work(self) -> OptFSConfig:
        if self.rewind_epoch >= self.search_epochs:
            raise ValueError(
                f"rewind_epoch {self.rewind_epoch} never comes: the search has the epochs 0 to "
                f"{self.search_epochs - 1}"
            )
        if self.paper and self.gate_step is not None:
            raise ValueError("gate_step has no meaning with paper: gates use train.learning_rate")
        return self


class Search(Phase):
    """All weights and all gates learn together while the gates grow steeper."""

    def __init__(self, selection: OptFS, snapshot: Snapshot) -> None:
        config = selection.config
        super().__init__("search", config.search_epochs, keep="last", early_stopping=False)
        self._config: OptFSConfig = config
        self._selection = selection
        self._snapshot = snapshot

    def groups(self, loop: Loop) -> Sequence[ParameterGroup]:
        logits = [gate.logits for gate in self._selection.gates]
        if self._config.paper:
            return [ParameterGroup("gates", logits, loop.config.learning_rate)]
        rate = (self._config.gate_step or DEFAULT_GATE_STEP) / loop.steps_per_epoch
        return [ParameterGroup("gates", logits, rate, eps=EPS)]

    def start_epoch(self, loop: Loop, epoch: int) -> None:
        value = self._config.temperature ** (epoch / (self._config.search_epochs - 1))
        for gate in self._selection.gates:
            gate.temperature.fill_(value)
        if epoch == self._config.rewind_epoch:
            self._snapshot.take(loop.model)

    def penalty(self, loop: Loop) -> Tensor:
        sums = [torch.sigmoid(g.temperature * g.logits).sum() for g in self._selection.gates]
        share = 1 if self._config.paper else self._selection.total
        return self._config.strength / share * torch.stack(sums).sum()

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        kept = sum(int(mask.sum()) for mask in self._selection.chosen())
        return {
            "selection/temperature": float(self._selection.gates[0].temperature),
            "selection/kept_ratio": kept / self._selection.total,
        }

    def end(self, loop: Loop) -> dict[str, Figure]:
        logits = torch.cat([gate.logits.detach().flatten() for gate in self._selection.gates])
        title = "Gate logits after the search; rows above 0 stay"
        return {"gates": plots.histogram(logits.cpu().numpy(), title, "Logit", threshold=0.0)}

    def state(self) -> dict[str, Tensor]:
        return self._snapshot.tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self._snapshot.tensors = tensors


class OptFS(RowSelection):
    """See the module's docstring."""

    Config = OptFSConfig
    config: OptFSConfig
    gates: list[ValueGates]  # type: ignore[assignment]

    def gate(self, rows: int) -> ValueGates:
        return ValueGates(rows, open_factor=None if self.config.paper else 1.0)

    def chosen(self) -> list[Tensor]:
        masks = [gate.is_open() for gate in self.gates]
        for mask, padded in zip(masks, self.padded, strict=True):
            if padded:
                mask[-1] = False
        return masks

    def phases(self) -> list[Phase]:
        snapshot = Snapshot(self)
        return [Search(self, snapshot), Retrain(self, snapshot, "retrain", self.train.max_epochs)]

    def training_bytes(self) -> int:
        """Adds the early weights that the retrain starts from."""
        return super().training_bytes() + snapshot_bytes(self.layers)
