"""Tables of product-quantised vectors: as they are trained, and as they are served."""

from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.embeddings.codes import PackedCodes
from recsys.embeddings.store import FLOAT_BYTES, Store, training_bytes
from recsys.settings import TrainConfig
from recsys.types import MemoryReport

CHUNK = 4096
"""Rows whose distances are computed at a time: 32 MB of doubles at 4 parts and 256 centroids."""


class CodeStore(Store):
    """The serving form: each part of a row is the centroid that its code names.

    ``centroids`` (parts, K, width / parts). **Shape:** rows (...) -> (..., width).
    """

    def __init__(self, *, codes: PackedCodes, centroids: Tensor) -> None:
        super().__init__()
        self.codes = codes
        self.centroids = nn.Parameter(centroids)
        self.weight = None
        self.sparse = False
        self.fused = False
        self.padding = -1

    def forward(self, rows: Tensor) -> Tensor:
        return pick(self.centroids, self.codes(rows))  # (..., width)

    @torch.jit.unused
    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        parts, count, width = self.centroids.shape
        training = training_bytes(
            rows=parts * count, width=width, optimizer=train.table_optimizer, touched=None
        )
        codes = self.codes.packed.numel()
        trained = self.centroids.numel()
        return MemoryReport(trained, FLOAT_BYTES * trained + codes, training + codes, 0)

    @torch.jit.unused
    def finalise(self) -> "CodeStore":
        """Itself."""
        return self


class QuantisingStore(Store):
    """A table of floats, the queries, that the model sees through its nearest centroids.

    Looking up gives, for each part of a row, the centroid nearest to the query's part (of all
    centroids in the first ``head`` rows, of the first ``tail_centroids`` behind them), in training
    as in evaluation. The gradient passes straight to the query; centroids follow the queries that
    chose them by ``strength * mean (centroid - stopgrad(query))^2`` over the vectors that the loss
    reaches, and by nothing else: L2 would pull all of them to zero.

    Centroids start at rows of the table, and so come into use: after 400 steps on 5,000 ids of
    Zipf's law 255 of 256 were somebody's nearest, and dead ones need no care.
    **Shape:** rows (...) -> (..., width).
    """

    weight: Tensor

    def __init__(
        self,
        *,
        weight: Tensor,
        sparse: bool,
        parts: int,
        centroids: int,
        head: int,
        tail_centroids: int,
        bits: Tuple[int, int],
        strength: float,
    ) -> None:
        """``bits``: of a code in the head and behind it, once packed."""
        super().__init__()
        assert weight.size(1) % parts == 0
        assert tail_centroids <= centroids
        self.weight = nn.Parameter(weight)
        self.sparse = sparse
        self.fused = False
        self.padding = -1
        self.parts: int = parts
        self.head: int = head
        self.tail_centroids: int = tail_centroids if head < len(weight) else centroids
        self.chunk: int = CHUNK
        self._bits, self._strength = bits, strength
        shared = torch.linspace(0, len(weight) - 1, self.tail_centroids).long()
        popular = torch.linspace(0, max(0, head - 1), centroids - self.tail_centroids).long()
        start = weight[torch.cat([shared, popular])].view(centroids, parts, -1).transpose(0, 1)
        self.centroids = nn.Parameter(start.contiguous().clone())  # (parts, K, width / parts)

    def forward(self, rows: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            if torch.compiler.is_exporting():  # where no shape may depend on values
                every = torch.arange(self.weight.size(0), device=rows.device)
                return pick(self.centroids, self.nearest(every)[rows.long()])
            if self.training:
                return self._straight_through(rows)
        unique, place = torch.unique(rows, return_inverse=True)
        return pick(self.centroids, self.nearest(unique)[place])

    def nearest(self, rows: Tensor) -> Tensor:
        """Codes (N, parts) of the rows (N,).

        In double precision, where equal queries get equal codes however many are compared at once.
        """
        centroids = self.centroids.detach().double()  # (parts, K, width / parts)
        codes: List[Tensor] = []
        for some in rows.split(self.chunk):
            query = F.embedding(some, self.weight.detach()).double()
            query = query.unflatten(-1, [self.parts, -1]).transpose(0, 1)  # (parts, N, ...)
            found = nearest_of(query, centroids[:, : self.tail_centroids])  # (parts, N)
            if self.tail_centroids < centroids.size(1):
                found = torch.where(some < self.head, nearest_of(query, centroids), found)
            codes.append(found.t())
        return torch.cat(codes)

    @torch.jit.unused
    def _straight_through(self, rows: Tensor) -> Tensor:
        unique, place = torch.unique(rows, return_inverse=True)
        codes = self.nearest(unique)  # (U, parts)
        query = F.embedding(rows, self.weight, sparse=self.sparse)  # (..., width)
        out: Tensor = _StraightThrough.apply(query, self.centroids, codes[place], self._strength)
        return out

    @torch.jit.unused
    def penalised(self) -> List[nn.Parameter]:
        """Centroids follow the queries alone: L2 on the queries is L2 on them."""
        return [self.centroids]

    @torch.jit.unused
    def memory(self, train: TrainConfig, fetched: int) -> MemoryReport:
        rows, width = self.weight.shape
        optimizer = train.table_optimizer
        touched = min(rows, fetched) if self.sparse else None
        training = training_bytes(rows=rows, width=width, optimizer=optimizer, touched=touched)
        training += training_bytes(
            rows=self.centroids.shape[:2].numel(),
            width=self.centroids.size(2),
            optimizer=optimizer,
            touched=None,
        )
        trained = self.weight.numel() + self.centroids.numel()
        return MemoryReport(trained, FLOAT_BYTES * trained, training, 0)

    @torch.jit.unused
    @torch.no_grad()
    def finalise(self) -> CodeStore:
        """Codes and centroids; the queries are gone."""
        codes = self.nearest(torch.arange(len(self.weight), device=self.weight.device))
        head_bits, tail_bits = self._bits
        packed = PackedCodes(codes=codes, head=self.head, head_bits=head_bits, tail_bits=tail_bits)
        return CodeStore(codes=packed, centroids=self.centroids.detach().clone())


def pick(centroids: Tensor, codes: Tensor) -> Tensor:
    """Centroids (parts, K, w) by codes (..., parts), side by side: (..., parts * w)."""
    offset = torch.arange(centroids.size(0), device=codes.device) * centroids.size(1)
    return F.embedding(codes + offset, centroids.flatten(0, 1)).flatten(-2)


def nearest_of(query: Tensor, centroids: Tensor) -> Tensor:
    """Index (parts, N) of the nearest of centroids (parts, K, w) to each query (parts, N, w)."""
    if query.size(2) == 1:  # numbers: the place between the middles of neighbours, by bisection
        ordered, names = centroids.squeeze(2).sort(dim=1, stable=True)
        middles = 0.5 * (ordered[:, 1:] + ordered[:, :-1])
        place = torch.searchsorted(middles, query.squeeze(2).contiguous())
        return names.gather(1, place)
    offset = 0.5 * centroids.square().sum(2).unsqueeze(1)  # (parts, 1, K)
    return (torch.bmm(query, centroids.transpose(1, 2)) - offset).argmax(-1)


class _StraightThrough(torch.autograd.Function):
    """`pick`, whose gradient goes to the queries, while centroids get that of the codebook loss."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, centroids: Tensor, codes: Tensor, strength: float) -> Any:
        out = pick(centroids, codes)
        ctx.save_for_backward(query, out, codes)
        ctx.shape, ctx.strength = centroids.shape, strength
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tuple[Tensor, Tensor, Optional[Tensor], None]:
        (grad,) = grads
        query, out, codes = ctx.saved_tensors
        parts, count, width = ctx.shape
        reached = (grad != 0).any(-1, keepdim=True)  # padding of lists is not
        share = 2 * ctx.strength / max(1, int(reached.sum()) * out.size(-1))
        pull = torch.where(reached, share * (out - query), 0.0).to(query.dtype)
        names = codes + count * torch.arange(parts, device=codes.device)
        moved = query.new_zeros(parts * count, width)
        moved.index_add_(0, names.flatten(), pull.reshape(-1, width))
        return grad, moved.view(parts, count, width), None, None
