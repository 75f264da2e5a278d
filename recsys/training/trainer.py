"""The training loop: phases x epochs x steps. It knows no model, no table method, no tracker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
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
from recsys.training.phase import Phase, load_states, states_of
from recsys.training.position import History, Position, TrainResult
from recsys.training.prediction import Predictions, Rows, open_device, predict, to_device
from recsys.training.progress import Bar, Reporter, SilentReporter
from recsys.training.schedule import Schedule
from recsys.training.stopping import Interrupted, StopRequest
from recsys.training.tracking import NullTracker, Tracker
from recsys.types import Batch, InputError, Metrics, Target

__all__ = ["Evaluate", "Interrupted", "Phase", "TrainResult", "Trainer"]

Loss = Callable[[Batch, Target], Tensor]
Evaluate = Callable[[nn.Module, Rows], Metrics]
Watch = Callable[[History], bool]


class Trainer:
    """Trains one model on encoded rows; N steps equal k steps, a stop, and N - k steps, bit for
    bit on a CPU.

    ``evaluate``: what ``valid`` is judged by after each epoch; without it, the metrics of clicks.
    ``watch``: called after each judged epoch of the last phase with all of them; true ends it.
    ``out``: folder for checkpoints, or ``None`` to keep none. ``fingerprint``: digest of the
    config; a checkpoint of another config or of other data is refused. It is the
    `recsys.training.phase.Loop` of its phases.
    """

    train_rows: Rows

    def __init__(
        self,
        *,
        model: nn.Module,
        config: TrainConfig,
        seed: int,
        fingerprint: str = "",
        evaluate: Evaluate | None = None,
        watch: Watch | None = None,
        out: Path | None = None,
        tracker: Tracker | None = None,
        log_every: int = 50,
        reporter: Reporter | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.device = open_device(config.device)
        self.seed = seed
        self._fingerprint = fingerprint
        self._out = out
        self._tracker: Tracker = tracker or NullTracker()
        self._log_every = log_every
        self._reporter: Reporter = reporter or SilentReporter()
        self._layers = [m for m in model.modules() if isinstance(m, EmbeddingLayer)]
        # A model that is trained by more than its logits (FinalNet) brings its own loss.
        self._loss: Loss = getattr(model, "loss", self._cross_entropy)
        self._evaluate: Evaluate = evaluate or (lambda _, rows: self.predict(rows).metrics())
        self._watch: Watch = watch or (lambda _: False)
        self._best: dict[str, Tensor] = {}
        self._stop = StopRequest()

    def fit(
        self, train: Rows, valid: Rows | None = None, phases: Sequence[Phase] | None = None
    ) -> TrainResult:
        """Runs all phases, leaving in the model the weights that the last one keeps.

        Without ``phases``: one, ordinary training. Several are tracked as nested runs.
        Errors: `InputError` for an empty train split or a checkpoint that does not belong to this
        run; `Interrupted` after SIGINT or SIGTERM, once the checkpoint is written.
        """
        if len(train) == 0:
            raise InputError("data.train has no rows; nothing can be trained")
        self._phases = phases or [Phase("train", self.config.max_epochs)]
        self.train_rows, self._valid = train, valid
        self.model.to(self.device)
        saved = load_checkpoint(self._out) if self._out is not None else None
        self._at = at = Position() if saved is None else Position(**saved.state["position"])
        with self._stop.listening():
            while at.phase < len(self._phases):
                phase = self._phases[at.phase]
                with self._tracker.phase(phase.name) if self._phases[1:] else nullcontext():
                    self._run(phase, saved)
                saved = None
        rate = at.train_rows / max(at.train_seconds, 1e-9)
        return TrainResult(at.history, at.total_steps, at.train_seconds, rate, self._kept)

    # -- what phases use -----------------------------------------------------------------------

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one pass over the training rows."""
        return math.ceil(len(self.train_rows) / self.config.batch_size)

    def train_batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        """The shuffled training batches of ``epoch``, without the first ``start``."""
        size = self.config.batch_size
        return self.train_rows.batches(size, shuffle=True, seed=self.seed, epoch=epoch, start=start)

    def predict(self, rows: Rows) -> Predictions:
        """Scores and targets of ``rows`` under the present weights."""
        return predict(self.model, rows, batch_size=self.config.batch_size, device=self.device)

    def forget(self, param: nn.Parameter, chosen: Tensor) -> None:
        """Zeroes optimiser state; see `recsys.training.phase.Loop.forget`."""
        self._optimizers.forget(param, chosen)

    def descend(
        self, batch: Batch, target: Target, *, only: Collection[str] | None = None
    ) -> float:
        """One gradient step on one batch; see `recsys.training.phase.Loop.descend`."""
        at, phase = self._at, self._phases[self._at.phase]
        self._optimizers.set_lr_scale(self._schedule.lr_scale(at.step))
        self._optimizers.zero_grad()
        bf16 = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            loss = self._loss(
                to_device(batch, self.device), Target(*(part.to(self.device) for part in target))
            )
        total = loss
        for layer in self._layers:
            total = total + layer.penalty()
        extra = phase.penalty(self)
        if extra is not None:
            total = total + extra
        total.backward()
        if self.config.clip_norm is not None:
            self._optimizers.clip(self.config.clip_norm, only)
        self._optimizers.step(only)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"{phase.name}: the loss is {value} at step {at.total_steps + 1}; lower "
                "train.learning_rate, set train.clip_norm or standardise the numeric features"
            )
        return value

    def _cross_entropy(self, batch: Batch, target: Target) -> Tensor:
        logits: Tensor = self.model(batch)
        return cross_entropy(logits, target.label, target.weight)

    # -- phases and epochs ---------------------------------------------------------------------

    def _run(self, phase: Phase, saved: Checkpoint | None) -> None:
        at = self._at
        steps = phase.max_epochs * self.steps_per_epoch
        self._schedule = Schedule(self.config, phase.early_stopping, steps, phase.rate)
        self._best, self._cut = {}, False
        if saved is None:
            phase.start(self)
        phase.enter(self)
        self._optimizers = build_optimizers(self.model, self.config, phase.groups(self))
        if saved is not None:
            self._restore(saved)
            self._reporter.say(f"resuming {phase.name} at step {at.total_steps:,}")
        else:
            if phase.judges_start and self._valid is not None:
                if self._schedule.judge(at.epoch, self._evaluate(self.model, self._valid)):
                    self._best = self._weights()
                self._schedule.history.clear()  # it was no epoch
            if at.phase > 0:
                self._save()
        while not self._over(phase):
            self._epoch(phase)
            traces = phase.end_epoch(self, at.epoch)
            name = "" if phase.name == "train" else f"{phase.name} "
            # a phase may have no steps, and so no loss
            said = [f"train loss {at.epoch_loss / at.batch:.5f}"] if at.batch else []
            if self._valid is not None:
                said.append(self._judge(self._valid, keep=phase.keep == "best"))
                self._schedule.history[-1].update(traces)
                if at.phase == len(self._phases) - 1:
                    self._cut = self._watch(self._schedule.history)
            self._tracker.log_metrics(traces, step=at.total_steps)
            said += [f"{key} {value:.5g}" for key, value in traces.items()]
            self._reporter.say(f"{name}epoch {at.epoch + 1}: {', '.join(said)}")
            at.epoch, at.batch, at.epoch_loss = at.epoch + 1, 0, 0.0
            if not self._over(phase):
                self._save()
                self._stop_if_asked()  # a phase may have no steps
        if self._best:
            self.model.load_state_dict(self._best)
        for name, figure in phase.end(self).items():
            self._tracker.log_figure(figure, f"plots/{name}.png")
        at.history[phase.name], self._kept = self._schedule.history, self._schedule.kept(phase.keep)
        at.phase, at.epoch, at.step = at.phase + 1, 0, 0

    def _over(self, phase: Phase) -> bool:
        stopped = self._valid is not None and self._schedule.exhausted
        return stopped or self._cut or self._at.epoch >= phase.max_epochs

    def _epoch(self, phase: Phase) -> None:
        at = self._at
        if at.batch == 0:
            phase.start_epoch(self, at.epoch)
        title = f"{phase.name} {at.epoch + 1}/{phase.max_epochs}"
        done = at.batch * self.config.batch_size
        with self._reporter.bar(title, len(self.train_rows), done) as bar:
            started = time.perf_counter()
            self.model.train()
            for batch, target in phase.batches(self, at.epoch, at.batch):
                loss = phase.step(self, at.step, batch, target)
                at.train_rows += len(target.label)
                at.train_seconds += time.perf_counter() - started
                self._after_step(loss, bar, len(target.label))
                started = time.perf_counter()

    def _after_step(self, loss: float, bar: Bar, rows: int) -> None:
        at = self._at
        at.batch, at.step, at.total_steps = at.batch + 1, at.step + 1, at.total_steps + 1
        at.epoch_loss += loss
        bar.advance(rows, f"loss {at.epoch_loss / at.batch:.4f}")
        if at.total_steps % self._log_every == 0:
            rate = self.config.learning_rate * self._schedule.lr_scale(at.step - 1)
            self._tracker.log_metrics(
                {"train/loss": loss, "train/learning_rate": rate}, step=at.total_steps
            )
        every = self.config.checkpoint_steps
        if self._stop.asked or (every is not None and at.total_steps % every == 0):
            self._save()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        """Errors: `Interrupted` once a signal came; what is saved must be saved before."""
        if self._stop.asked:
            raise Interrupted(
                f"stopped at step {self._at.total_steps:,}; "
                + ("the same command continues from here" if self._out else "nothing was saved")
            )

    def _judge(self, valid: Rows, *, keep: bool) -> str:
        at, schedule = self._at, self._schedule
        metrics = self._evaluate(self.model, valid)
        monitor = self.config.monitor
        if monitor not in metrics:
            raise InputError(f"train.monitor {monitor!r} was not measured on valid")
        best = schedule.judge(at.epoch, metrics)
        schedule.history[-1]["train_loss"] = at.epoch_loss / max(1, at.batch)
        if best and keep:
            self._best = self._weights()
        named = {f"valid/{key}": value for key, value in metrics.items() if key != "rows"}
        named["train/epoch_loss"] = schedule.history[-1]["train_loss"]
        self._tracker.log_metrics(named, step=at.total_steps)
        return f"valid {monitor} {metrics[monitor]:.5f}" + (" (best)" if best and keep else "")

    def _weights(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    # -- checkpoints ---------------------------------------------------------------------------

    def _save(self) -> None:
        if self._out is None:
            return
        tensors, plain = self._optimizers.state()
        state: dict[str, Any] = {
            "config": self._fingerprint,
            "data": self.train_rows.fingerprint,
            "position": vars(self._at),
            "schedule": self._schedule.state(),
            "optimizer": plain,
            "run_id": self._tracker.run_id,
        }
        phases = states_of(self._phases[: self._at.phase + 1])
        model = self.model.state_dict()
        checkpoint = Checkpoint(model, tensors, self._best, phases, rng_state(), state)
        save_checkpoint(self._out, checkpoint, step=self._at.total_steps)

    def _restore(self, saved: Checkpoint) -> None:
        assert self._out is not None
        saved.check(self._out, self._fingerprint, self.train_rows.fingerprint)
        self.model.load_state_dict(saved.model)
        self._optimizers.load_state(saved.optimizer, saved.state["optimizer"])
        self._best = saved.best
        load_states(self._phases[: self._at.phase + 1], saved.phases)
        self._schedule.load_state(saved.state["schedule"])
        set_rng_state(saved.rng)
