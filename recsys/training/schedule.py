"""What the trainer decides between steps: learning rate, and when to stop."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from recsys.settings import TrainConfig
from recsys.types import InputError

LOWER_IS_BETTER = frozenset({"logloss", "ne", "ece"})
_MIN_GAIN = 1e-6


@dataclass
class Schedule:
    """Linear warm-up, then x ``plateau_factor`` after every epoch without a better metric.

    With ``patience`` such epochs in a row the phase stops. These are FuxiCTR's rules, so that
    published settings carry over. ``reacts``: false keeps the rate and never stops. ``steps``: of
    the whole phase if it runs to its last epoch, over which `TrainConfig.decay` lowers the rate.
    ``rate``: what the phase multiplies all learning rates by.
    """

    config: TrainConfig
    reacts: bool = True
    steps: int = 1
    rate: float = 1.0
    plateau_scale: float = 1.0
    bad_epochs: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)

    def lr_scale(self, step: int) -> float:
        """Multiplier of every base learning rate at 0-based ``step`` of the phase."""
        warmup = self.config.warmup_steps
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        floor = self.config.min_learning_rate / self.config.learning_rate
        return ramp * max(self.rate * self.plateau_scale * self._decay(step), min(1.0, floor))

    def _decay(self, step: int) -> float:
        warmup = self.config.warmup_steps
        done = max(0, step - warmup) / max(1, self.steps - warmup)
        if self.config.decay == "linear":
            return max(0.0, 1.0 - done)
        if self.config.decay == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    def judge(self, epoch: int, metrics: dict[str, float]) -> bool:
        """Takes the validation metrics of one epoch; returns whether they are the best so far.

        A NaN metric never counts as better. Errors: `InputError` if the rows do not define it: it
        is NaN from the start, although the scores are numbers; and if scores are none.
        """
        value = metrics[self.config.monitor]
        if math.isnan(metrics.get("logloss", 0.0)) and metrics.get("rows", 0) > 0:
            raise InputError(
                f"valid, epoch {epoch + 1}: scores of some rows are not numbers; lower "
                "train.learning_rate, set train.clip_norm or standardise the numeric features"
            )
        undefined = math.isnan(value) and math.isfinite(metrics.get("logloss", math.nan))
        if undefined and self.best_value is None:
            raise InputError(
                f"train.monitor {self.config.monitor} is not defined on valid: it has rows of one "
                "label only, as far as this metric looks; set train.monitor to logloss, or use "
                "other rows"
            )
        self.history.append({"epoch": float(epoch), **metrics})
        signed = -value if self.config.monitor in LOWER_IS_BETTER else value
        if not math.isnan(signed) and (
            self.best_value is None or signed > self.best_value + _MIN_GAIN
        ):
            self.best_value, self.best_epoch, self.bad_epochs = signed, epoch, 0
            return True
        if self.reacts:
            self.bad_epochs += 1
            self.plateau_scale *= self.config.bad_epoch_scale
        return False

    def kept(self, keep: str) -> float:
        """What the weights that stay have on valid: those of the ``best`` judgement, or of the
        ``last``; NaN where there is none."""
        if keep == "last":
            return self.history[-1][self.config.monitor] if self.history else math.nan
        sign = -1 if self.config.monitor in LOWER_IS_BETTER else 1
        return math.nan if self.best_value is None else sign * self.best_value

    @property
    def exhausted(self) -> bool:
        """True after ``patience`` epochs in a row without a better metric."""
        return self.bad_epochs >= self.config.patient_epochs

    def state(self) -> dict[str, Any]:
        """Plain JSON of everything but the settings."""
        settings = ("config", "reacts", "steps", "rate")
        return {key: value for key, value in asdict(self).items() if key not in settings}

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts back what `state` returned."""
        for key, value in state.items():
            setattr(self, key, value)
