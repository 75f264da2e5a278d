"""Tables that are integers while they are trained: floats exist of the rows that a step reads.

A forward pass decodes the rows of its batch into one leaf of unique rows; the backward pass leaves
their gradients with the store; `IntegerStore.update` moves them by the table optimiser in fp32 and
writes them back with stochastic rounding. Rounding to the nearest code would undo every move below
half a code, and training would stand still (Gupta et al., https://arxiv.org/abs/1502.02551).
"""

import weakref
from typing import Dict, List, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.embeddings.integer_rows import (
    CODE_TYPES,
    IntegerRows,
    Scale,
    largest_code,
    stochastic_round,
)
from recsys.embeddings.method import TableSpec
from recsys.embeddings.store import FLOAT_BYTES, INDEX_BYTES, FusedStore
from recsys.settings import TrainConfig
from recsys.training.sparse_optimizers import (
    CHUNK_FLOATS,
    RowGradient,
    TableOptimizer,
    chunks,
    coalesce,
    move_rows,
    new_state,
)
from recsys.types import InputError, MemoryReport


def state_floats(optimizer: TableOptimizer, rows: int, width: int) -> int:
    """Floats of an optimiser's state for a table."""
    per_weight = {"adam": 2, "adagrad": 1, "rowwise_adagrad": 0, "sgd": 0}[optimizer]
    return per_weight * rows * width + (rows if optimizer == "rowwise_adagrad" else 0)


class IntegerStore(IntegerRows, FusedStore):
    """A table of integers that learns.

    Gradients are those of the decoded rows (straight through the rounding). ``embedding_l2`` acts
    on touched rows. Several lookups in one step add up, as they do in a float table. The state of
    the optimiser is float32 and lies outside the weights: two floats a weight for Adam, one for
    Adagrad, one a row for row-wise Adagrad, none for SGD.
    """

    def __init__(self, *, spec: TableSpec, train: TrainConfig, bits: int, scale: Scale) -> None:
        assert not spec.zero_row, "a row of zeros would need a mask of its own"
        codes = torch.zeros(spec.rows, spec.width, dtype=CODE_TYPES[bits])
        super().__init__(codes=codes, scale=scale)
        self.fused = True
        self._optimizer = train.table_optimizer
        self._rate = train.table_learning_rate
        l2 = train.embedding_l2
        self._l2 = l2.value if l2.mode == "touched_rows" else 0.0
        self._decay = l2.value if l2.mode == "decoupled" else 0.0
        self._pending: List[RowGradient] = []
        self._merged: Optional[RowGradient] = None
        self._state: Dict[str, Tensor] = {}
        self._fill(spec)

    def forward(self, rows: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return self.decoded(rows)
        if self.training and torch.is_grad_enabled():
            return self._leaf(rows)
        return self.decoded(rows)

    @torch.jit.unused
    def _leaf(self, rows: Tensor) -> Tensor:
        unique, place = torch.unique(rows, return_inverse=True)
        leaf = self.decoded(unique).requires_grad_()  # (U, width)
        store = weakref.ref(self)  # a graph that is kept must not keep the table

        def keep(leaf: Tensor) -> None:
            owner = store()
            if owner is not None and leaf.grad is not None:
                owner._pending.append(RowGradient(unique, leaf.grad))
            leaf.grad = None

        leaf.register_post_accumulate_grad_hook(keep)
        return F.embedding(place, leaf)  # (..., width)

    @torch.no_grad()
    def _fill(self, spec: TableSpec) -> None:
        size = max(1, CHUNK_FLOATS // spec.width)
        for first in range(0, spec.rows, size):
            rows = torch.arange(first, min(first + size, spec.rows))
            values = torch.empty(len(rows), spec.width)
            spec.fill(values)
            self.write(rows, values)

    @torch.no_grad()
    def write(self, rows: Tensor, values: Tensor) -> None:
        """Stores ``values`` (U, width) in unique ``rows`` (U,), rounded stochastically."""
        limit = largest_code(self.codes)
        scale = self.scale.fitted(rows, values, limit)
        codes = stochastic_round(values / scale, limit)
        self.codes.index_copy_(0, rows, codes.to(self.codes.dtype))

    def set_learning_rate(self, value: float) -> None:
        """The rate of the coming steps."""
        self._rate = value

    def forget(self) -> None:
        """Drops gradients that no step has used."""
        self._pending, self._merged = [], None

    def gradients(self) -> List[Tensor]:
        """The summed gradients (U, width) of the touched rows."""
        if self._pending:
            rows = torch.cat([part.rows for part in self._pending])
            values = torch.cat([part.values for part in self._pending])
            merged = torch.sparse_coo_tensor(
                rows.long().unsqueeze(0), values, self.codes.shape, check_invariants=False
            )
            self._pending, self._merged = [], coalesce(merged)
        return [] if self._merged is None else [self._merged.values]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the rows that backward passes have touched since the last step.

        Errors: `InputError` for rows that are no longer finite: integers could not show it.
        """
        self.gradients()
        state = self.optimizer_state()
        state["step"] += 1
        if self._merged is None:
            return
        for part in chunks(self._merged):
            values = self.decoded(part.rows)  # (U, width)
            move_rows(
                values,
                state,
                part,
                optimizer=self._optimizer,
                learning_rate=self._rate,
                step=int(state["step"]),
                l2=self._l2,
                decay=self._decay,
            )
            if not bool(torch.isfinite(values).all()):
                raise InputError(
                    "a row of a table of integers is no longer finite; lower train.learning_rate, "
                    "set train.clip_norm or standardise the numeric features"
                )
            self._write_back(part, values)
        self.forget()

    def _write_back(self, gradient: RowGradient, values: Tensor) -> None:
        """Stores moved rows; what else learns from their gradient does so here."""
        self.write(gradient.rows, values)

    def optimizer_state(self) -> Dict[str, Tensor]:
        """The live state, by name; ``step`` counts the steps taken."""
        if not self._state:
            one = torch.zeros((), device=self.codes.device)
            self._state = new_state(one.expand(self.codes.shape), self._optimizer)
            self._state["step"] = torch.zeros((), dtype=torch.int64)
        return self._state

    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        rows, width = self.codes.shape
        state = state_floats(self._optimizer, rows, width)
        # the decoded rows of a batch, their gradients, and their numbers
        batch = min(rows, fetched) * (2 * FLOAT_BYTES * width + INDEX_BYTES)
        stored = self.stored_bytes()
        training = stored + FLOAT_BYTES * state + batch
        return MemoryReport(self.trained_numbers(), stored, training, 0)

    def trained(self) -> List[Tensor]:
        return [self.codes]

    def finalise(self) -> IntegerRows:
        """The serving form: the same integers, in the same memory."""
        return IntegerRows(codes=self.codes, scale=self.scale)
