"""Phases: how a method of several stages tells the trainer what to do, without the trainer knowing.

A run is a list of phases. Each has optimisers, a schedule and a nested tracked run of its own, and
overrides what it needs of the hooks below; `Phase` itself is ordinary training. The order of calls:

    start                      once, before the phase's first step; never repeated by a resume
    enter                      whenever the phase begins or is resumed
    groups
    for each epoch:
        start_epoch            before its first step; not repeated by a resume inside the epoch
        batches, step ...      `penalty` joins the loss of every `Loop.descend`
        end_epoch              before the epoch is measured on valid
    end                        once, with the weights that stay

A run that is stopped anywhere and resumed equals one that was not, bit for bit, if every hook is
deterministic and keeps what it changes in tensors: those of the model (parameters and buffers,
whose names and shapes must not change between phases) or its own, in `Phase.state`. What is no
tensor, such as modes and which parameters take gradients, is set by `Phase.enter`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from torch import Tensor, nn

from recsys.settings import TrainConfig
from recsys.training.optimizers import ParameterGroup
from recsys.training.prediction import Predictions, Rows
from recsys.types import Batch, Metrics, Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Loop(Protocol):
    """What a phase may use of the trainer that runs it."""

    model: nn.Module
    config: TrainConfig
    seed: int

    @property
    def train_rows(self) -> Rows:
        """The rows that are trained on."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the training rows."""

    def train_batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        """The shuffled training batches of ``epoch``, without the first ``start``."""

    def descend(
        self, batch: Batch, target: Target, *, only: Collection[str] | None = None
    ) -> float:
        """One gradient step on one batch; returns its loss, penalties excluded.

        ``only``: what to move: ``network``, ``tables``, names of `Phase.groups`; ``None``: all.
        """

    def forget(self, param: nn.Parameter, chosen: Tensor) -> None:
        """Zeroes the optimiser's state of the entries ``chosen`` (a mask of the shape of ``param``,
        which has two dimensions). What an optimiser keeps once a row goes with whole rows only."""

    def predict(self, rows: Rows) -> Predictions:
        """Scores and targets of ``rows`` under the present weights, in evaluation mode."""


class Phase:
    """One stretch of training. As it is: every batch is one step on everything.

    ``max_epochs``: at most so many rounds of `batches`. ``keep``: the weights that stay are those
    of the best epoch by ``train.monitor``, or of the last. ``early_stopping``: whether ``patience``
    ends the phase and ``plateau_factor`` lowers the rate. ``rate``: what all learning rates are
    multiplied by.
    """

    judges_start: ClassVar[bool] = False
    """Whether the weights that it starts with stay if no epoch is better."""

    def __init__(
        self,
        name: str,
        max_epochs: int,
        *,
        keep: Literal["best", "last"] = "best",
        early_stopping: bool = True,
        rate: float = 1.0,
    ) -> None:
        self.name = name
        self.max_epochs = max_epochs
        self.keep = keep
        self.early_stopping = early_stopping
        self.rate = rate

    def start(self, loop: Loop) -> None:
        """Changes values of the model in place (rewinds, prunes) before the first step."""

    def enter(self, loop: Loop) -> None:
        """Sets modes and ``requires_grad``. Reads no tensor: a resume fills them afterwards."""

    def groups(self, loop: Loop) -> Sequence[ParameterGroup]:
        """Parameters with a rule of their own; all others move as ``train`` says."""
        return ()

    def start_epoch(self, loop: Loop, epoch: int) -> None:
        """What changes from epoch to epoch (from 0), such as a temperature."""

    def batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        """What `step` is called with, without the first ``start``. Nothing: a phase without
        gradient steps, which works in `end_epoch`."""
        return loop.train_batches(epoch, start)

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        """Step number ``step`` of the phase, from 0; returns the loss.

        The place to alternate (several `Loop.descend`, on rows of another split too) and to prune
        after the step.
        """
        return loop.descend(batch, target)

    def penalty(self, loop: Loop) -> Tensor | None:
        """A scalar that joins the loss of every step."""
        return None

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        """Returns points of curves: name -> value after this epoch."""
        return {}

    def end(self, loop: Loop) -> dict[str, Figure]:
        """Returns pictures: name -> figure."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Tensors, beside the model's, that this phase and later ones need; saved with each
        checkpoint until the run ends."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` returned."""


def states_of(phases: Sequence[Phase]) -> dict[str, Tensor]:
    """What `Phase.state` of each returns, as one dict."""
    return {
        f"{place}.{key}": value
        for place, phase in enumerate(phases)
        for key, value in phase.state().items()
    }


def load_states(phases: Sequence[Phase], tensors: dict[str, Tensor]) -> None:
    """Puts back what `states_of` returned."""
    for place, phase in enumerate(phases):
        prefix = f"{place}."
        phase.load_state(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
