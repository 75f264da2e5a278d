"""The training loop: phases x epochs x steps. It knows no model, no table method, no tracker."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer
from recsys.layers.losses import cross_entropy
from recsys.settings import TrainConfig
from recsys.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from recsys.training.optimizers import build_optimizers
from recsys.training.prediction import Predictions, Rows, predict, to_device
from recsys.training.progress import Bar, Reporter, SilentReporter
from recsys.training.schedule import Schedule
from recsys.training.tracking import NullTracker, Tracker
from recsys.types import Batch, InputError, Target

Loss = Callable[[Batch, Target], Tensor]


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own optimiser state, schedule and early stopping.

    ``start`` is called once with the model before the phase's first step (to rewind, prune, ...);
    it must be deterministic, since a resumed run does not repeat it but reads its result.
    """

    name: str
    max_epochs: int

    def start(self, model: nn.Module) -> None:
        """Changes the model in place before the first step."""


@dataclass(frozen=True)
class TrainResult:
    """``history``: one entry per judged epoch; ``rows_per_second``: training rows over training
    time, evaluation excluded."""

    history: list[dict[str, float]]
    steps: int
    seconds: float
    rows_per_second: float


class Interrupted(RuntimeError):
    """Training was asked to stop and has saved a checkpoint; the same command goes on."""


@dataclass
class _Position:
    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0  # of the phase
    total_steps: int = 0
    train_seconds: float = 0.0
    train_rows: int = 0
    epoch_loss: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Trains one model on encoded rows; N steps equal k steps, a stop, and N - k steps, bit for
    bit on a CPU.

    ``out``: folder for checkpoints, or ``None`` to keep none. ``fingerprint``: digest of the
    config; a checkpoint of another config or of other data is refused.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        config: TrainConfig,
        seed: int,
        fingerprint: str = "",
        out: Path | None = None,
        tracker: Tracker | None = None,
        log_every: int = 50,
        reporter: Reporter | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.device = torch.device(config.device)
        self._seed = seed
        self._fingerprint = fingerprint
        self._out = out
        self._tracker: Tracker = tracker or NullTracker()
        self._log_every = log_every
        self._reporter: Reporter = reporter or SilentReporter()
        self._layers = [m for m in model.modules() if isinstance(m, EmbeddingLayer)]
        # A model that is trained by more than its logits (FinalNet) brings its own loss.
        self._loss: Loss = getattr(model, "loss", self._cross_entropy)
        self._best: dict[str, Tensor] = {}
        self._stop = False

    def fit(
        self, train: Rows, valid: Rows | None = None, phases: Sequence[Phase] | None = None
    ) -> TrainResult:
        """Runs all phases, leaving the best weights (by ``monitor``) in the model.

        Errors: `InputError` for an empty train split or a checkpoint that does not belong to this
        run; `Interrupted` after SIGINT or SIGTERM, once the checkpoint is written.
        """
        if len(train) == 0:
            raise InputError("data.train has no rows; nothing can be trained")
        phases = phases or [Phase("train", self.config.max_epochs)]
        self.model.to(self.device)
        saved = load_checkpoint(self._out) if self._out is not None else None
        at = _Position() if saved is None else _Position(**saved.state["position"])
        with self._stoppable():
            while at.phase < len(phases):
                at = self._phase(phases[at.phase], at, saved, train, valid)
                saved = None
        return TrainResult(
            at.history,
            at.total_steps,
            at.train_seconds,
            at.train_rows / max(at.train_seconds, 1e-9),
        )

    def predict(self, rows: Rows) -> Predictions:
        """Scores and targets of ``rows`` under the present weights."""
        return predict(self.model, rows, batch_size=self.config.batch_size, device=self.device)

    def _cross_entropy(self, batch: Batch, target: Target) -> Tensor:
        logits: Tensor = self.model(batch)
        return cross_entropy(logits, target.label, target.weight)

    # -- phases and epochs ---------------------------------------------------------------------

    def _phase(
        self,
        phase: Phase,
        at: _Position,
        saved: Checkpoint | None,
        train: Rows,
        valid: Rows | None,
    ) -> _Position:
        schedule = Schedule(self.config)
        if saved is None:
            phase.start(self.model)
            self._best = {}
        self._optimizers = build_optimizers(self.model, self.config)
        if saved is not None:
            self._restore(saved, schedule, train)
            self._reporter.say(f"resuming {phase.name} at step {at.total_steps:,}")
        while at.epoch < phase.max_epochs and not (valid and schedule.exhausted):
            self._epoch(phase, at, schedule, train)
            note = f"epoch {at.epoch + 1}: train loss {at.epoch_loss / max(1, at.batch):.5f}"
            if valid is not None:
                note += self._judge(at, schedule, valid)
            self._reporter.say(note)
            at.epoch, at.batch, at.epoch_loss = at.epoch + 1, 0, 0.0
            if at.epoch < phase.max_epochs and not (valid and schedule.exhausted):
                self._save(at, schedule, train)
        if self._best:
            self.model.load_state_dict(self._best)
        at.history.extend(schedule.history)
        at.phase, at.epoch, at.batch, at.step = at.phase + 1, 0, 0, 0
        return at

    def _epoch(self, phase: Phase, at: _Position, schedule: Schedule, train: Rows) -> None:
        size = self.config.batch_size
        batches = train.batches(size, shuffle=True, seed=self._seed, epoch=at.epoch, start=at.batch)
        title = f"{phase.name} {at.epoch + 1}/{phase.max_epochs}"
        with self._reporter.bar(title, len(train), at.batch * size) as bar:
            started = time.perf_counter()
            self.model.train()
            for batch, target in batches:
                loss = self._step(batch, target, at, schedule)
                at.train_rows += len(target.label)
                at.train_seconds += time.perf_counter() - started
                self._after_step(loss, at, schedule, train, bar, len(target.label))
                started = time.perf_counter()

    def _step(self, batch: Batch, target: Target, at: _Position, schedule: Schedule) -> float:
        self._optimizers.set_lr_scale(schedule.lr_scale(at.step))
        self._optimizers.zero_grad()
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            loss = self._loss(
                to_device(batch, self.device), Target(*(part.to(self.device) for part in target))
            )
        total = loss
        for layer in self._layers:
            total = total + layer.penalty()
        total.backward()
        if self.config.clip_norm is not None:
            self._optimizers.clip(self.config.clip_norm)
        self._optimizers.step()
        for layer in self._layers:
            layer.after_step(at.step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"train: the loss is {value} at step {at.total_steps + 1}; lower "
                "train.learning_rate, set train.clip_norm or standardise the numeric features"
            )
        return value

    def _after_step(
        self, loss: float, at: _Position, schedule: Schedule, train: Rows, bar: Bar, rows: int
    ) -> None:
        at.batch, at.step, at.total_steps = at.batch + 1, at.step + 1, at.total_steps + 1
        at.epoch_loss += loss
        bar.advance(rows, f"loss {at.epoch_loss / at.batch:.4f}")
        if at.total_steps % self._log_every == 0:
            rate = self.config.learning_rate * schedule.lr_scale(at.step - 1)
            self._tracker.log_metrics(
                {"train/loss": loss, "train/learning_rate": rate}, step=at.total_steps
            )
        every = self.config.checkpoint_steps
        if self._stop or (every is not None and at.total_steps % every == 0):
            self._save(at, schedule, train)
        if self._stop:
            raise Interrupted(
                f"stopped at step {at.total_steps:,}; "
                + ("the same command continues from here" if self._out else "nothing was saved")
            )

    def _judge(self, at: _Position, schedule: Schedule, valid: Rows) -> str:
        metrics = self.predict(valid).metrics()
        if self.config.monitor not in metrics:
            raise InputError(f"train.monitor {self.config.monitor!r} was not measured on valid")
        best = schedule.judge(at.epoch, metrics)
        schedule.history[-1]["train_loss"] = at.epoch_loss / max(1, at.batch)
        if best:
            self._best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        named = {f"valid/{key}": value for key, value in metrics.items() if key != "rows"}
        named["train/epoch_loss"] = schedule.history[-1]["train_loss"]
        self._tracker.log_metrics(named, step=at.total_steps)
        return f", valid auc {metrics['auc']:.5f}, logloss {metrics['logloss']:.5f}" + (
            " (best)" if best else ""
        )

    # -- checkpoints and signals ---------------------------------------------------------------

    def _save(self, at: _Position, schedule: Schedule, train: Rows) -> None:
        if self._out is None:
            return
        tensors, plain = self._optimizers.state()
        state: dict[str, Any] = {
            "config": self._fingerprint,
            "data": train.fingerprint,
            "position": vars(at),
            "schedule": schedule.state(),
            "optimizer": plain,
            "run_id": self._tracker.run_id,
        }
        checkpoint = Checkpoint(self.model.state_dict(), tensors, self._best, rng_state(), state)
        save_checkpoint(self._out, checkpoint, step=at.total_steps)

    def _restore(self, saved: Checkpoint, schedule: Schedule, train: Rows) -> None:
        if saved.state["config"] != self._fingerprint:
            raise InputError(f"checkpoint {self._out}: belongs to another config; remove it")
        if saved.state["data"] != train.fingerprint:
            raise InputError(
                f"checkpoint {self._out}: the training data has changed since; remove the folder "
                "to start anew"
            )
        self.model.load_state_dict(saved.model)
        self._optimizers.load_state(saved.optimizer, saved.state["optimizer"])
        self._best = saved.best
        schedule.load_state(saved.state["schedule"])
        set_rng_state(saved.rng)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for a stop after the present step; a second SIGINT is at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop:
                signal.default_int_handler(number, frame)
            self._stop = True

        try:
            before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # signals belong to the main thread; elsewhere there is nothing to catch
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
