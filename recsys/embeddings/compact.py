"""Tables with zeros left out, for serving: dense columns or compressed sparse rows, by bytes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.store import FLOAT_BYTES, FloatStore, Store, TorchStore
from recsys.settings import TrainConfig
from recsys.types import MemoryReport

__all__ = ["ColumnStore", "CsrStore", "compact", "described", "empty"]


class CompactStore(Store):
    """A table that only serves: nothing of it is trained."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.width: int = width
        self.sparse = False
        self.fused = False
        self.padding = -1

    @torch.jit.unused
    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        tensors = [*self.parameters(), *self.buffers()]
        stored = sum(t.numel() * t.element_size() for t in tensors)
        return MemoryReport(sum(p.numel() for p in self.parameters()), stored, stored, 0)

    @torch.jit.unused
    def finalise(self) -> Store:
        return self


class ColumnStore(CompactStore):
    """``weight`` (R, c) holds the columns ``columns`` (c,) of a table of ``width`` ones; the others
    are zero. **Shape:** rows (...) -> (..., width)."""

    weight: Tensor
    columns: Tensor

    def __init__(self, *, weight: Tensor, columns: Tensor, width: int) -> None:
        super().__init__(width=width)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("columns", columns.to(torch.uint8 if width <= 256 else torch.int32))

    def forward(self, rows: Tensor) -> Tensor:
        kept = F.embedding(rows, self.weight)  # (..., c)
        shape = list(kept.shape)
        shape[-1] = self.width
        out = torch.zeros(shape, dtype=kept.dtype, device=kept.device)
        return out.index_copy(-1, self.columns.long(), kept)


class CsrStore(CompactStore):
    """Compressed sparse rows: row r has the values ``values[start_r : start_(r + 1)]`` in the
    columns ``columns`` of the same places. **Shape:** rows (...) -> (..., width).

    A look-up gathers as many places as the fullest row has, so that shapes depend on no value.
    """

    starts: Tensor
    columns: Tensor

    def __init__(
        self, *, values: Tensor, starts: Tensor, columns: Tensor, width: int, longest: int
    ) -> None:
        super().__init__(width=width)
        self.longest: int = longest
        self.values = nn.Parameter(values, requires_grad=False)  # (nnz,), one zero if there is none
        self.register_buffer("starts", starts.to(torch.int32))  # (R + 1,)
        self.register_buffer("columns", columns.to(torch.uint8 if width <= 256 else torch.int32))

    @staticmethod
    def of(weight: Tensor) -> "CsrStore":
        """The non-zero entries of a table (R, width)."""
        counts = (weight != 0).sum(1)
        starts = F.pad(counts.cumsum(0), (1, 0))
        row, column = weight.nonzero(as_tuple=True)
        values = weight[row, column]
        if len(values) == 0:  # a gather needs something to clamp to
            values, column = weight.new_zeros(1), torch.zeros(1, dtype=torch.int64)
        longest = int(counts.max()) if len(counts) else 0
        return CsrStore(
            values=values, starts=starts, columns=column, width=weight.size(1), longest=longest
        )

    def forward(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1).long()  # (N,)
        start = self.starts[flat].long().unsqueeze(1)
        count = self.starts[flat + 1].long().unsqueeze(1) - start
        step = torch.arange(self.longest, device=flat.device)
        place = (start + step).clamp_max(self.values.size(0) - 1)  # (N, longest)
        values = self.values[place] * (step < count)
        out = torch.zeros(
            [flat.size(0), self.width], dtype=self.values.dtype, device=self.values.device
        )
        out = out.scatter_add(1, self.columns[place].long(), values)
        shape = list(rows.shape)
        shape.append(self.width)
        return out.view(shape)


def compact(weight: Tensor) -> Store:
    """The smallest store that gives the rows of ``weight`` (R, width), zeros included, exactly."""
    weight = weight.detach()
    rows, width = weight.shape
    index = 1 if width <= 256 else 4
    used = (weight != 0).any(0).nonzero().squeeze(1)
    nonzero = int((weight != 0).sum())
    sizes = {
        "plain": FLOAT_BYTES * rows * width,
        "columns": (FLOAT_BYTES * rows + index) * len(used),
        "csr": (FLOAT_BYTES + index) * max(1, nonzero) + 4 * (rows + 1),
    }
    best = min(sizes, key=sizes.__getitem__)  # the first of equals: the simplest
    if best == "plain":
        return TorchStore(weight=weight, sparse=False)
    if best == "columns":
        return ColumnStore(weight=weight[:, used].contiguous(), columns=used, width=width)
    return CsrStore.of(weight)


def described(store: Store) -> dict[str, Any]:
    """Kind and sizes of a store that `compact` made, as plain JSON; `empty` makes its like."""
    if isinstance(store, CsrStore):
        kind = {"kind": "csr", "nonzero": store.values.numel(), "longest": store.longest}
        return kind | {"rows": len(store.starts) - 1, "width": store.width}
    if isinstance(store, ColumnStore):
        kind = {"kind": "columns", "columns": len(store.columns)}
        return kind | {"rows": store.weight.size(0), "width": store.width}
    assert isinstance(store, FloatStore)
    return {"kind": "plain", "rows": store.weight.size(0), "width": store.weight.size(1)}


def empty(description: Mapping[str, Any]) -> Store:
    """A store of the described kind and sizes that holds zeros, for saved weights to be put in."""
    rows, width = int(description["rows"]), int(description["width"])
    kind = description["kind"]
    if kind == "plain":
        return TorchStore(weight=torch.zeros(rows, width), sparse=False)
    if kind == "columns":
        columns = torch.zeros(int(description["columns"]), dtype=torch.int64)
        return ColumnStore(weight=torch.zeros(rows, len(columns)), columns=columns, width=width)
    if kind == "csr":
        places = torch.zeros(int(description["nonzero"]))
        return CsrStore(
            values=places,
            starts=torch.zeros(rows + 1),
            columns=places,
            width=width,
            longest=int(description["longest"]),
        )
    raise ValueError(f"no store is called {kind!r}")
