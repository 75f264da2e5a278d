"""ALPT: integer rows whose step size is learned, row by row.

Li et al., "Adaptive Low-Precision Training for Embeddings in Click-Through Rate Prediction"
(AAAI 2023), https://arxiv.org/abs/2212.05735. With codes ``c`` of b bits and a step ``D_r`` for
each row, ``w = D_r c``. Each training step:

1. the touched rows, decoded, take the step of the table optimiser: ``w' = w - ...``;
2. ``D_r`` takes a step too. With ``q = 2^(b-1) - 1``, B examples a batch and rows d wide, its
   gradient is

       1 / sqrt(B d q) * sum_j dL/dw_j * s_j,    s_j = round(w'_j / D_r) - w'_j / D_r,

   or ``s_j = +-q`` where ``|w'_j / D_r| > q`` (the gradient of rounding, straight through);
3. ``w'`` is rounded stochastically with the new step, and stored.

The authors take ``dL/dw`` of step 2 from a second pass over the batch, at ``round(w' / D_r) D_r``,
one move of the optimiser further on. The gradient of the first pass stands in for it here, and a
training step costs one pass, not two.
"""

from __future__ import annotations

from math import sqrt
from typing import ClassVar, Literal, cast

from pydantic import PositiveFloat
from torch import Tensor

from recsys.embeddings.integer_rows import RowSteps, largest_code
from recsys.embeddings.integer_store import IntegerStore, state_floats
from recsys.embeddings.method import TableConfig, TableSpec
from recsys.embeddings.quantised import IntegerTable, IntegerTableConfig
from recsys.embeddings.store import FLOAT_BYTES
from recsys.settings import TrainConfig
from recsys.training.sparse_optimizers import RowGradient, move_rows, new_state
from recsys.types import MemoryReport

SMALLEST_STEP = 1e-7
"""Steps stay above it: a step of zero or below would be the end of a row."""

FIRST_STEP = {"adam": 1.0, "sgd": 1.0, "adagrad": 0.1, "rowwise_adagrad": 0.1}
"""How much of a learning rate a code is worth at first: about one move of Adam, and a tenth of a
new row's first one by Adagrad, whose moves shrink. No fixed start fits two logs: at .01, rows of
Frappe (Adam at .001) ended at 0 or one step either way, with a test AUC of .969 instead of .981;
where Adagrad learns at .05, a start there gave a valid AUC of .675, one at .005 .707."""

_PREFIX = "steps."


class AlptConfig(IntegerTableConfig):
    """``bits``: of a code. ``step``: where every row's step size starts; ``None``: at
    `FIRST_STEP` of the tables' learning rate. ``step_learning_rate``: of the steps, which the table
    optimiser moves and the schedule scales; the published value.

    With a ``budget``, ``embedding_dim`` is an upper limit, as in ``full``. Weights start from
    N(0, init_std^2), rounded.
    """

    method: Literal["alpt"]
    bits: Literal[8, 16] = 8
    step: PositiveFloat | None = None
    step_learning_rate: PositiveFloat = 2e-5


class LearnedStepStore(IntegerStore):
    """A table of integers with a learned step for each row; see the head of this file."""

    def __init__(self, *, spec: TableSpec, train: TrainConfig, config: AlptConfig) -> None:
        start = config.step or FIRST_STEP[train.table_optimizer] * train.table_learning_rate
        steps = RowSteps(spec.rows, start=start)
        super().__init__(spec=spec, train=train, bits=config.bits, scale=steps)
        # of the table's rate; so the schedule scales both
        self._share = config.step_learning_rate / train.table_learning_rate
        limit = largest_code(self.codes)
        self._damping = 1 / sqrt(train.batch_size * spec.width * limit)
        self._step_state: dict[str, Tensor] = {}

    def _steps(self) -> RowSteps:
        return cast(RowSteps, self.scale)

    def _write_back(self, gradient: RowGradient, values: Tensor) -> None:
        limit = largest_code(self.codes)
        steps = self._steps().step.index_select(0, gradient.rows)  # (U, 1)
        exact = values / steps
        slope = exact.clamp(-limit, limit).round() - exact * (exact.abs() <= limit)
        grad = (gradient.values * slope).sum(1, keepdim=True) * self._damping
        state = self.optimizer_state()
        move_rows(
            steps,
            self._step_state,
            RowGradient(gradient.rows, grad),
            optimizer=self._optimizer,
            learning_rate=self._rate * self._share,
            step=int(state["step"]),
        )
        self._steps().step.index_copy_(0, gradient.rows, steps.clamp_min_(SMALLEST_STEP))
        self.write(gradient.rows, values)

    def optimizer_state(self) -> dict[str, Tensor]:
        if not self._step_state:
            self._step_state = new_state(self._steps().step, self._optimizer)
        named = {f"{_PREFIX}{key}": value for key, value in self._step_state.items()}
        return super().optimizer_state() | named

    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        rows = self.codes.size(0)
        steps = FLOAT_BYTES * state_floats(self._optimizer, rows, 1)
        return super().memory(train, fetched) + MemoryReport(0, 0, steps, 0)

    def trained(self) -> list[Tensor]:
        return [self.codes, self._steps().step]


class Alpt(IntegerTable):
    """A row of width d takes b d / 8 bytes, and four for its step."""

    Config: ClassVar[type[TableConfig]] = AlptConfig
    config: AlptConfig

    @property
    def bits(self) -> int:
        return self.config.bits

    def scale_bytes(self) -> int:
        return RowSteps.bytes_per_row

    def store(self, spec: TableSpec, train: TrainConfig) -> LearnedStepStore:
        return LearnedStepStore(spec=spec, train=train, config=self.config)
