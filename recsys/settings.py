"""The parts of a run's config that are not features, tables or models: data, training, tracking.

Read `recsys.config` for the whole tree.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from recsys.types import FrozenConfig

Paths = str | list[str]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


class SplitConfig(FrozenConfig):
    """How one log becomes train, valid and test.

    ``random``: by a hash of the row's place in the log and ``seed``; ``time``: by the timestamp
    column, the last rows are test; ``leave_last_out``: each group's last row is test, the one
    before valid, the rest train (ties by place in the log).
    """

    method: Literal["random", "time", "leave_last_out"]
    valid: Fraction = 0.1
    test: Fraction = 0.1
    seed: int = 0


class DataConfig(FrozenConfig):
    """Where the rows are and what their special columns are called.

    Either ``train`` (with ``valid`` and ``test`` if there are any), or ``source`` with ``split``.
    """

    train: Paths | None = None
    valid: Paths | None = None
    test: Paths | None = None
    source: Paths | None = None
    split: SplitConfig | None = None
    label: str
    weight: str | None = None
    group: str | None = None
    timestamp: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> DataConfig:
        if (self.source is None) == (self.train is None):
            raise ValueError("give either data.train or data.source (with data.split)")
        if (self.source is None) != (self.split is None):
            raise ValueError("data.source and data.split go together")
        if self.source is not None and (self.valid is not None or self.test is not None):
            raise ValueError("data.valid and data.test are cut out of data.source; remove them")
        if self.split is not None and self.split.method == "time" and self.timestamp is None:
            raise ValueError("data.split.method time needs data.timestamp")
        by_user = self.split is not None and self.split.method == "leave_last_out"
        if by_user and (self.group is None or self.timestamp is None):
            raise ValueError("data.split.method leave_last_out needs data.group and data.timestamp")
        return self


class EmbeddingL2(FrozenConfig):
    """L2 on embedding tables.

    ``all_rows``: ``(value / 2) * ||W||^2`` over whole tables joins the loss at every step (FuxiCTR,
    BARS); dense tables only. ``touched_rows``: the same gradient on the rows of the batch alone.
    ``decoupled``: AdamW's ``W -= lr * value * W``, on all rows of a dense table and on touched rows
    of a row-sparse one. ``batch_aware``: ``(value / n_m) * ||w_m||^2`` of every touched row m joins
    the loss, ``n_m`` its training frequency (DIN); row-sparse tables only, the vectors of numeric
    fields and projections get none.
    """

    value: NonNegative = 0.0
    mode: Literal["all_rows", "touched_rows", "decoupled", "batch_aware"] = "all_rows"


class TrainConfig(FrozenConfig):
    """The training loop. Units: steps and epochs as named, learning rates per step.

    ``decay``: after the warm-up, the way of the learning rate to ``min_learning_rate`` at the last
    of ``max_epochs``. ``plateau_factor``: what an epoch without a better ``monitor`` does to the
    rate (0.1; with a decay 1). ``patience``: how many such epochs in a row end training (2; with a
    decay none do).
    ``warm_start``: folder of a bundle, from the working folder; weights start from it instead of at
    random, the rows of tables by raw id.
    """

    batch_size: PositiveInt = 4096
    max_epochs: PositiveInt = 10
    learning_rate: PositiveFloat = 1e-3
    optimizer: Literal["adam", "adagrad", "sgd"] = "adam"
    weight_decay: NonNegative = 0.0
    embedding_optimizer: Literal["adam", "adagrad", "rowwise_adagrad", "sgd"] | None = None
    embedding_learning_rate: PositiveFloat | None = None
    embedding_l2: EmbeddingL2 = EmbeddingL2()
    embedding_gradient: Literal["auto", "dense", "sparse"] = "auto"
    store: Literal["torch", "torchrec"] = "torch"
    clip_norm: PositiveFloat | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    plateau_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    min_learning_rate: NonNegative = 1e-6
    monitor: str = "auc"
    patience: PositiveInt | None = None
    checkpoint_steps: PositiveInt | None = None
    warm_start: str | None = None
    device: str = "cpu"

    @property
    def table_optimizer(self) -> Literal["adam", "adagrad", "rowwise_adagrad", "sgd"]:
        """The optimiser of embedding tables: their own, or the network's."""
        return self.embedding_optimizer or self.optimizer

    @property
    def table_learning_rate(self) -> float:
        """The learning rate of embedding tables: their own, or the network's."""
        return self.embedding_learning_rate or self.learning_rate

    @property
    def bad_epoch_scale(self) -> float:
        """What an epoch without a better metric multiplies the learning rate by."""
        return self.plateau_factor or (0.1 if self.decay == "none" else 1.0)

    @property
    def patient_epochs(self) -> float:
        """Epochs in a row without a better metric that end a phase."""
        return self.patience or (2 if self.decay == "none" else math.inf)

    @field_validator("device")
    @classmethod
    def _is_device(cls, value: str) -> str:
        if re.fullmatch(r"cpu|cuda(:\d+)?", value) is None:
            raise ValueError(f"{value!r} is no device to train on; write cpu, cuda or cuda:1")
        return value

    @model_validator(mode="after")
    def _can_work(self) -> TrainConfig:
        l2 = self.embedding_l2
        if l2.value > 0 and l2.mode == "all_rows" and self.embedding_gradient == "sparse":
            raise ValueError(
                "train.embedding_l2.mode all_rows moves every row at every step and needs "
                "embedding_gradient dense (or auto); use mode touched_rows with sparse gradients"
            )
        if l2.value > 0 and l2.mode == "batch_aware" and self.embedding_gradient == "dense":
            raise ValueError(
                "train.embedding_l2.mode batch_aware moves only the rows of a batch and needs "
                "embedding_gradient sparse (or auto); use mode all_rows with dense gradients"
            )
        if self.store == "torchrec":
            if self.table_optimizer == "adam" and self.device == "cpu":
                raise ValueError(
                    "train.store torchrec has no Adam on a CPU (fbgemm: SGD, Adagrad and row-wise "
                    "Adagrad only); set embedding_optimizer to rowwise_adagrad or store to torch"
                )
            if l2.value > 0:
                raise ValueError("train.embedding_l2 needs store torch")
        return self


class TrackingConfig(FrozenConfig):
    """Where runs are tracked. ``uri: null`` tracks nothing."""

    uri: str | None = "sqlite:///mlflow.db"
    experiment: str = "recsys"
    register_model: bool = True
    log_every: PositiveInt = 50


class ExportConfig(FrozenConfig):
    """What the bundle promises, and how it stores tables of floats.

    ``quantise``: after training, to rows of ``int8`` or ``int4`` with a scale and a bias each, or
    of ``fp16``; none: float32. The manifest says what it changed.
    """

    tolerance: PositiveFloat = 1e-6
    verify_rows: PositiveInt = 1000
    quantise: Literal["int8", "int4", "fp16"] | None = None
