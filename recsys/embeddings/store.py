"""Where the rows of a table live, and which kind of gradient they get."""

from typing import List, Literal, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.method import TableSpec
from recsys.settings import TrainConfig
from recsys.types import MemoryReport

FLOAT_BYTES = 4
INDEX_BYTES = 8
DENSE_BELOW = 2_000_000
"""Floats below which ``auto`` keeps Adam dense; see `is_sparse`."""

_STATE_PER_WEIGHT = {"adam": 2, "adagrad": 1, "rowwise_adagrad": 0, "sgd": 0}


class Store(nn.Module):
    """One table: rows (...) int32 or int64 -> (..., width).

    ``sparse``: the gradient of its parameters is row-sparse; ``fused``: the store moves itself, by
    the methods of `FusedStore`, and optimisers leave its parameters alone; ``padding``: index of
    its zero row, or -1. ``is_network``: every id moves all of its parameters, which therefore move
    by the network's optimiser and rate, not by those of tables.

    ``weight`` is what ``sparse`` speaks of; stores of no plain floats (quantised, computed, ...)
    may have none. What works on whole tables (selection, L2 of projections) takes `FloatStore`.
    """

    weight: Optional[Tensor]
    sparse: bool
    fused: bool
    padding: int
    is_network: bool = False

    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        """Sizes, without lookups. ``fetched``: rows that one batch fetches at most."""
        raise NotImplementedError

    def finalise(self) -> "Store":
        """The serving form, which gives the same vectors and holds no more bytes."""
        raise NotImplementedError

    def penalty(self) -> Optional[Tensor]:
        """What the store adds to the loss at each step, a scalar, or nothing."""
        return None

    def penalised(self) -> List[nn.Parameter]:
        """Parameters whose L2 is part of `penalty`, so that optimisers must not add theirs."""
        return []

    def after_step(self) -> Optional[Tensor]:
        """What the store does once a step has moved it; returns the rows (n,) that start anew, of
        which the optimiser forgets what it knew, or nothing."""
        return None

    def rows_of(self, rows: Tensor) -> Tensor:
        """Entries (...) of the table that the rows (...) mean: equal places have equal vectors."""
        return rows

    def trained(self) -> List[Tensor]:
        """The tensors that training moves: parameters, and what a `FusedStore` holds instead."""
        return list(self.parameters())


class FloatStore(Store):
    """A table of plain floats: ``weight`` (rows, width)."""

    weight: Tensor

    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        rows, width = self.weight.shape
        touched = min(rows, fetched) if self.sparse else None
        training = training_bytes(
            rows=rows, width=width, optimizer=train.table_optimizer, touched=touched
        )
        if train.embedding_l2.mode == "batch_aware":
            training += rows * FLOAT_BYTES  # the frequency of each row
        trained = (rows - int(self.padding >= 0)) * width
        return MemoryReport(trained, self.weight.numel() * self.weight.element_size(), training, 0)


class FusedStore(Store):
    """A store that moves itself (``fused`` is true): in the backward pass, or in `update`."""

    def set_learning_rate(self, value: float) -> None:
        """The rate of the coming steps."""
        raise NotImplementedError

    def gradients(self) -> List[Tensor]:
        """Dense gradients of the last backward pass that clipping may scale in place."""
        return []

    def forget(self) -> None:
        """Drops gradients that no step has used."""

    def update(self) -> None:
        """Moves the rows that the last backward pass has touched."""

    def optimizer_state(self) -> "dict[str, Tensor]":
        """The live state of its optimiser, by name."""
        raise NotImplementedError


class TorchStore(FloatStore):
    """One table as a plain parameter. ``sparse``: gradients hold touched rows only.

    **Shape:** rows (...) int32 or int64 -> (..., width). Rows that point at a zero row get exact
    zeros and give it no gradient.
    """

    def __init__(self, *, weight: Tensor, sparse: bool, zero_row: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.sparse = sparse
        self.fused = False
        self.padding = weight.size(0) - 1 if zero_row else -1

    def forward(self, rows: Tensor) -> Tensor:
        if self.padding >= 0:
            return F.embedding(rows, self.weight, padding_idx=self.padding, sparse=self.sparse)
        return F.embedding(rows, self.weight, sparse=self.sparse)

    @torch.jit.unused
    def finalise(self) -> "TorchStore":
        """The serving form, in the same memory."""
        return TorchStore(weight=self.weight.detach(), sparse=False, zero_row=self.padding >= 0)


def build_store(spec: TableSpec, train: TrainConfig) -> Store:
    """Allocates and fills one table where ``train.store`` says, or as the method says.

    Errors: `InputError` if torchrec cannot hold the table (its width must be a multiple of 4).
    """
    if spec.store is not None:
        return spec.store(spec, train)
    if train.store == "torchrec":
        from recsys.embeddings.torchrec_store import TorchrecStore

        if TorchrecStore.holds(spec, train):
            return TorchrecStore(spec=spec, train=train)
    weight = torch.empty(spec.rows, spec.width)
    spec.fill(weight)
    if spec.zero_row:
        weight[-1] = 0
    return TorchStore(weight=weight, sparse=is_sparse(spec, train), zero_row=spec.zero_row)


def is_sparse(spec: TableSpec, train: TrainConfig) -> bool:
    """Whether a table gets row-sparse gradients.

    ``auto`` is dense if ``embedding_l2`` moves whole tables at every step (``all_rows``), sparse if
    it moves the rows of a batch by their frequency (``batch_aware``), and else dense, for Adam
    alone, below `DENSE_BELOW` floats, where dense Adam (untouched rows move too, as published
    results assume) costs 3 to 4 ms a step. SGD and both Adagrads take the same step either way, so
    the faster one is used. Milliseconds for lookup, backward and step, sparse / dense, at batch
    4096 x 26, width 16, one thread (processor time, least of 15 runs):

        rows           1 k        20 k        100 k        400 k        1.5 M
        rowwise     2.5 / 5.8   3.7 / 6.9   6.0 / 10.8   8.0 / 33.7   9.9 / 132.9
        adam        2.4 / 5.6   4.3 / 7.1   8.3 / 11.8  12.4 / 24.8  16.0 / 81.4
    """
    if train.embedding_gradient != "auto":
        return train.embedding_gradient == "sparse"
    if train.embedding_l2.value > 0 and train.embedding_l2.mode in ("all_rows", "batch_aware"):
        return train.embedding_l2.mode == "batch_aware"
    return train.table_optimizer != "adam" or spec.rows * spec.width >= DENSE_BELOW


def training_bytes(
    *,
    rows: int,
    width: int,
    optimizer: Literal["adam", "adagrad", "rowwise_adagrad", "sgd"],
    touched: int | None,
) -> int:
    """Bytes of one table in training: weights, gradient, optimiser state.

    ``touched``: rows that one batch fetches at most; ``None``: the gradient is dense.
    """
    numel = rows * width
    state = _STATE_PER_WEIGHT[optimizer] * numel + (rows if optimizer == "rowwise_adagrad" else 0)
    if touched is None:
        gradient = FLOAT_BYTES * numel
    else:
        gradient = touched * (FLOAT_BYTES * width + INDEX_BYTES)
    return FLOAT_BYTES * (numel + state) + gradient
