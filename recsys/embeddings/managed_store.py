"""Tables whose rows belong to the ids that are in use."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn import functional as F

from recsys.embeddings.managed_ids import ManagedIds, SortedIds
from recsys.embeddings.method import TableSpec
from recsys.embeddings.store import FLOAT_BYTES, Store, TorchStore, is_sparse, training_bytes
from recsys.settings import TrainConfig
from recsys.types import MemoryReport


class ManagedStore(Store):
    """A table that is trained: ids (...) -> (..., width), by `ManagedIds`.

    A use is a lookup in training mode whose vectors get a gradient. After the step rows go to other
    ids; they start anew, by ``spec.fill``, and the optimiser forgets what it knew of them.

    ``ids``: shared by the tables of a field in all layers. ``first``: whether this one, and no
    other, counts their uses and their bytes.
    """

    weight: Tensor

    def __init__(
        self, *, spec: TableSpec, train: TrainConfig, ids: ManagedIds, first: bool
    ) -> None:
        super().__init__()
        weight = torch.empty(spec.rows, spec.width)
        spec.fill(weight)
        self.weight = nn.Parameter(weight)
        self.ids = ids
        self.sparse = is_sparse(spec, train)
        self.fused = False
        self.padding = -1
        self._first: bool = first
        self._fill = spec.fill
        self._changes: int = ids.changes

    def forward(self, rows: Tensor) -> Tensor:
        vectors = F.embedding(self.ids(rows), self.weight, sparse=self.sparse)
        if not is_scripting():
            self._count(rows, vectors)
        return vectors

    @torch.jit.unused
    def _count(self, rows: Tensor, vectors: Tensor) -> None:
        if self._first and self.training and vectors.requires_grad:
            vectors.register_hook(lambda _: self.ids.use(rows))

    @torch.jit.unused
    @torch.no_grad()
    def after_step(self) -> Optional[Tensor]:
        self.ids.settle()
        if self._changes == self.ids.changes:
            return None
        self._changes = self.ids.changes
        rows = self.ids.fresh.long()
        fresh = self.weight.new_empty(len(rows), self.weight.size(1))
        self._fill(fresh)
        self.weight.index_copy_(0, rows, fresh)
        return rows

    @torch.no_grad()
    def adopt(self, old: "ManagedRows") -> None:
        """Starts from a table of the same size that was served: its owners, and their rows."""
        self.ids.adopt(old.lookup)
        self.weight.copy_(old.table(torch.arange(self.weight.size(0))))

    @torch.jit.unused
    def rows_of(self, rows: Tensor) -> Tensor:
        own: Tensor = self.ids(rows)
        return own

    @torch.jit.unused
    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        rows, width = self.weight.shape
        floats = training_bytes(
            rows=rows,
            width=width,
            optimizer=train.table_optimizer,
            touched=min(rows, fetched) if self.sparse else None,
        )
        ids = _bytes(self.ids) if self._first else 0
        return MemoryReport(rows * width, FLOAT_BYTES * rows * width + ids, floats + ids, 0)

    @torch.jit.unused
    @torch.no_grad()
    def finalise(self) -> "ManagedRows":
        """The serving form: rows in the order of their ids, so that an id's place is its row.
        The ids are in the same memory: good until training goes on."""
        table = TorchStore(weight=self.weight.index_select(0, self.ids.slots.long()), sparse=False)
        return ManagedRows(lookup=self.ids.lookup, table=table, first=self._first)


class ManagedRows(Store):
    """The serving form: the owners' sorted ids, and a table of any kind in their order.

    **Shape:** ids (...) -> (..., width) float32.
    """

    def __init__(self, *, lookup: SortedIds, table: Store, first: bool) -> None:
        super().__init__()
        self.lookup = lookup
        self.table = table
        self.weight = None
        self.sparse = False
        self.fused = False
        self.padding = -1
        self._first: bool = first

    def forward(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.table(self.lookup(rows))
        return vectors

    @torch.jit.unused
    def over(self, table: Store) -> "ManagedRows":
        """The same ids over another table."""
        return ManagedRows(lookup=self.lookup, table=table, first=self._first)

    @torch.jit.unused
    def rows_of(self, rows: Tensor) -> Tensor:
        own: Tensor = self.lookup(rows)
        return own

    @torch.jit.unused
    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        ids = _bytes(self.lookup) if self._first else 0
        return self.table.memory(train, fetched) + MemoryReport(0, ids, ids, 0)

    @torch.jit.unused
    def finalise(self) -> "ManagedRows":
        """Itself: it is the serving form."""
        return self


def _bytes(module: nn.Module) -> int:
    return sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
