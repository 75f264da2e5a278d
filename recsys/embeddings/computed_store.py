"""Tables whose rows are computed from few parameters."""

from typing import List

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.utils.checkpoint import checkpoint

from recsys.embeddings.store import FLOAT_BYTES, Store, training_bytes
from recsys.settings import TrainConfig
from recsys.types import MemoryReport

WORK_FLOATS = 1_000_000
"""Floats that one part of a batch may need between its ids and its vectors."""
LEAST_PART = 256


class ComputedStore(Store):
    """Rows (...) int32 or int64 -> (..., width), by `compute` over the distinct rows of a call.

    Distinct rows are computed in parts of bounded size; in training all but a lone part are
    computed again in the backward pass rather than kept, so that the peak is one part's, whatever
    the batch.

    ``row_floats``: what one row needs on its way, in floats.
    """

    def __init__(self, *, width: int, row_floats: int) -> None:
        super().__init__()
        self.width: int = width
        self.row_floats: int = row_floats
        self.part: int = max(LEAST_PART, WORK_FLOATS // row_floats)
        self.weight = None
        self.sparse = False
        self.fused = False
        self.padding = -1

    def prepare(self) -> List[Tensor]:
        """Tensors that all parts of a call share."""
        raise NotImplementedError

    def compute(self, rows: Tensor, shared: List[Tensor]) -> Tensor:
        """Rows (U,) int64, distinct and rising (in an exported program: any), -> (U, width)."""
        raise NotImplementedError

    def forward(self, rows: Tensor) -> Tensor:
        shape = list(rows.shape)
        shape.append(self.width)
        flat = rows.reshape(-1).long()
        shared = self.prepare()
        if not is_scripting():  # noqa: SIM102 (a script leaves out the whole branch)
            if torch.compiler.is_exporting():  # no shape may depend on a value
                return self.compute(flat, shared).view(shape)
        distinct, place = torch.unique(flat, return_inverse=True)
        parts: List[Tensor] = []
        for part in distinct.split(self.part):
            parts.append(self._part(part, shared, distinct.size(0) > self.part))
        return torch.cat(parts).index_select(0, place).view(shape)

    def _part(self, rows: Tensor, shared: List[Tensor], one_of_many: bool) -> Tensor:
        if not is_scripting():  # noqa: SIM102 (a script leaves out the whole branch)
            if one_of_many and torch.is_grad_enabled():
                return checkpoint(
                    self.compute, rows, shared, use_reentrant=False, preserve_rng_state=False
                )
        return self.compute(rows, shared)

    @torch.jit.unused
    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        """Training bytes hold the work space of one part, forward and backward."""
        params: List[nn.Parameter] = list(self.parameters())
        numel = sum(p.numel() for p in params)
        training = sum(
            training_bytes(
                rows=p.size(0),
                width=p[0].numel(),
                optimizer=train.optimizer if self.is_network else train.table_optimizer,
                touched=None,
            )
            for p in params
        )
        work = 2 * min(fetched, self.part) * self.row_floats * FLOAT_BYTES
        return MemoryReport(numel, numel * FLOAT_BYTES, training + work, 0)
