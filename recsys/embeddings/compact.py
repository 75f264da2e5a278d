"""Tables with zeros left out, for serving: whole columns, the last columns of ranges of rows, or
compressed sparse rows, by bytes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.store import FLOAT_BYTES, FloatStore, Store, TorchStore
from recsys.settings import TrainConfig
from recsys.types import MemoryReport

__all__ = ["ColumnStore", "CsrStore", "PrefixStore", "compact", "described", "empty"]


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


class PrefixStore(CompactStore):
    """Ranges of rows, of which range i holds its first ``widths[i]`` columns; the others are zero.

    It begins with row ``starts[i]``, whose floats begin at ``bases[i]`` of ``values``.
    **Shape:** rows (...) -> (..., width).
    """

    starts: Tensor
    bases: Tensor
    widths: Tensor

    def __init__(
        self,
        *,
        values: Tensor,
        starts: Tensor,
        bases: Tensor,
        widths: Tensor,
        rows: int,
        width: int,
    ) -> None:
        super().__init__(width=width)
        self.rows: int = rows
        self.values = nn.Parameter(
            values, requires_grad=False
        )  # (sum of rows x widths,), or a zero
        self.register_buffer("starts", starts.to(torch.int32))
        self.register_buffer("bases", bases.to(torch.int64))
        self.register_buffer("widths", widths.to(torch.uint8 if width <= 256 else torch.int32))

    @staticmethod
    def of(weight: Tensor, starts: Tensor, widths: Tensor) -> "PrefixStore":
        """The first ``widths`` columns of the ranges of a table (R, width) from ``starts`` on."""
        rows, width = weight.shape
        lengths = torch.diff(starts, append=torch.tensor([rows]))
        sizes = lengths * widths
        kept = torch.arange(width) < widths.repeat_interleave(lengths).unsqueeze(1)  # (R, width)
        kept = kept.to(weight.device)
        values = weight[kept] if kept.any() else weight.new_zeros(1)
        return PrefixStore(
            values=values,
            starts=starts,
            bases=sizes.cumsum(0) - sizes,
            widths=widths,
            rows=rows,
            width=width,
        )

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows.long()
        at = torch.bucketize(rows, self.starts, right=True) - 1  # (...) the range of each row
        width = self.widths[at].long()
        first = self.bases[at] + (rows - self.starts[at]) * width
        column = torch.arange(self.width, device=rows.device)
        place = (first.unsqueeze(-1) + column).clamp_max(self.values.size(0) - 1)
        return self.values[place] * (column < width.unsqueeze(-1))  # (..., width)


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


RANGE_BYTES = 4 + 8 + 1
"""Of one range of a `PrefixStore` no wider than 256."""
LARGEST_START = 2**31 - 1
"""Of a row in the values of a `CsrStore`."""


def compact(weight: Tensor) -> Store:
    """The smallest store that gives the rows of ``weight`` (R, width), zeros included, exactly."""
    weight = weight.detach()
    rows, width = weight.shape
    index = 1 if width <= 256 else 4
    used = (weight != 0).any(0).nonzero().squeeze(1)
    nonzero = int((weight != 0).sum())
    starts, widths, held = prefix_ranges(weight)
    sizes = {
        "plain": FLOAT_BYTES * rows * width,
        "columns": (FLOAT_BYTES * rows + index) * len(used),
        "prefix": FLOAT_BYTES * max(1, held) + (RANGE_BYTES - 1 + index) * len(starts),
        "csr": (FLOAT_BYTES + index) * max(1, nonzero) + 4 * (rows + 1),
    }
    if nonzero > LARGEST_START:
        del sizes["csr"]
    best = min(sizes, key=sizes.__getitem__)  # the first of equals: the simplest
    if best == "plain":
        return TorchStore(weight=weight, sparse=False)
    if best == "columns":
        return ColumnStore(weight=weight[:, used].contiguous(), columns=used, width=width)
    if best == "prefix":
        return PrefixStore.of(weight, starts, widths)
    return CsrStore.of(weight)


def prefix_ranges(weight: Tensor) -> tuple[Tensor, Tensor, int]:
    """Cuts a table (R, width) into ranges of rows that a `PrefixStore` holds in few bytes.

    Returns the first row and the width of each, and how many floats all of them hold. Neighbours
    are joined while that saves bytes, starting from rows of equal width.
    """
    width = weight.size(1)
    column = torch.arange(1, width + 1, device=weight.device)
    last = ((weight != 0) * column).amax(1).cpu().numpy() if weight.numel() else np.zeros(1, int)
    starts = np.flatnonzero(np.diff(last, prepend=-1))
    widths, lengths = last[starts], np.diff(starts, append=len(last))
    rng = np.random.default_rng(0)
    while len(starts) > 1:
        joint = np.maximum(widths[:-1], widths[1:])
        wasted = lengths[:-1] * (joint - widths[:-1]) + lengths[1:] * (joint - widths[1:])
        saved = RANGE_BYTES - FLOAT_BYTES * wasted  # by joining each range with the next
        # Those that save more than the joins beside them, all at once; chance decides between
        # equals, so that some of a long row of equals are joined in every round.
        rank = saved + rng.random(len(saved)) / 2
        before, after = np.append(-np.inf, rank[:-1]), np.append(rank[1:], -np.inf)
        chosen = np.flatnonzero((saved > 0) & (rank > before) & (rank > after))
        if len(chosen) == 0:
            break
        widths[chosen], lengths[chosen] = joint[chosen], lengths[chosen] + lengths[chosen + 1]
        starts, widths, lengths = (np.delete(a, chosen + 1) for a in (starts, widths, lengths))
    held = int((widths * lengths).sum())
    return torch.from_numpy(starts), torch.from_numpy(widths), held


def described(store: Store) -> dict[str, Any]:
    """Kind and sizes of a store that `compact` made, as plain JSON; `empty` makes its like."""
    if isinstance(store, CsrStore):
        kind = {"kind": "csr", "nonzero": store.values.numel(), "longest": store.longest}
        return kind | {"rows": len(store.starts) - 1, "width": store.width}
    if isinstance(store, PrefixStore):
        kind = {"kind": "prefix", "floats": store.values.numel(), "ranges": len(store.starts)}
        return kind | {"rows": store.rows, "width": store.width}
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
    if kind == "prefix":
        ranges = torch.zeros(int(description["ranges"]), dtype=torch.int64)
        values = torch.zeros(int(description["floats"]))
        return PrefixStore(
            values=values, starts=ranges, bases=ranges, widths=ranges, rows=rows, width=width
        )
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
