"""The blocks of NASRec: a dense and a sparse operator each, over outputs of earlier blocks."""

from collections.abc import Sequence
from typing import Any, ClassVar, Dict, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys.layers.block_config import MERGED, BlockConfig
from recsys.layers.init import linear

Axes = Dict[str, Tuple[str, ...]]
"""Parameter -> what each of its axes runs over. A supernet slices its weights by these names."""

_NORM: Axes = {"norm.weight": ("width",), "norm.bias": ("width",)}


class FullyConnected(nn.Module):
    """``relu(norm(W left))``. **Shape** ``(B, left) -> (B, width)``."""

    AXES: ClassVar[Axes] = {"linear.weight": ("width", "left"), **_NORM}

    def __init__(self, *, left: int, right: int, vectors: int, width: int, dim: int) -> None:
        del right, vectors, dim
        super().__init__()
        self.linear = linear(left, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, left: Tensor, right: Tensor, sparse: Tensor) -> Tensor:
        return self.norm(self.linear(left)).relu()


class Gating(nn.Module):
    """``norm(W (sigmoid(G left) * right))``. **Shape** ``(B, left), (B, right) -> (B, width)``."""

    AXES: ClassVar[Axes] = {
        "gate.weight": ("right", "left"),
        "linear.weight": ("width", "right"),
        **_NORM,
    }

    def __init__(self, *, left: int, right: int, vectors: int, width: int, dim: int) -> None:
        del vectors, dim
        super().__init__()
        self.gate = linear(left, right, bias=False)
        self.linear = linear(right, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, left: Tensor, right: Tensor, sparse: Tensor) -> Tensor:
        return self.norm(self.linear(self.gate(left).sigmoid() * right))


class Sum(nn.Module):
    """``norm(W (left + right))``, the shorter with zeros at its end. **Shape** as `Gating`."""

    AXES: ClassVar[Axes] = {"linear.weight": ("width", "longer"), **_NORM}

    def __init__(self, *, left: int, right: int, vectors: int, width: int, dim: int) -> None:
        del vectors, dim
        super().__init__()
        self.longer = max(left, right)
        self.linear = linear(self.longer, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, left: Tensor, right: Tensor, sparse: Tensor) -> Tensor:
        left = F.pad(left, [0, self.longer - left.shape[1]])
        right = F.pad(right, [0, self.longer - right.shape[1]])
        return self.norm(self.linear(left + right))


class DotProduct(nn.Module):
    """``norm(W [<t_i, t_j> for j < i])`` over ``t``: the dense input projected to one vector, then
    k mixtures of the vectors, with k of `mixed_to`, so that there are about ``width`` pairs.

    **Shape** ``(B, left), (B, vectors, D) -> (B, width)``.
    """

    AXES: ClassVar[Axes] = {
        "project.weight": ("dim", "left"),
        "mix": ("mixtures", "vectors"),
        "linear.weight": ("width", "pairs"),
        **_NORM,
    }
    pairs: Tensor

    def __init__(self, *, left: int, right: int, vectors: int, width: int, dim: int) -> None:
        del right
        super().__init__()
        k = mixed_to(width)
        self.project = linear(left, dim, bias=False)
        self.mix = nn.Parameter(nn.init.xavier_normal_(torch.empty(k, vectors)))
        self.register_buffer("pairs", pair_places(k + 1), persistent=False)
        self.linear = linear(k * (k + 1) // 2, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, left: Tensor, right: Tensor, sparse: Tensor) -> Tensor:
        t = torch.cat([self.project(left).unsqueeze(1), mixtures(self.mix, sparse)], dim=1)
        dots = torch.bmm(t, t.transpose(1, 2)).flatten(1)  # (B, (k + 1)^2)
        return self.norm(self.linear(dots.index_select(1, self.pairs)))


def mixtures(mix: Tensor, sparse: Tensor) -> Tensor:
    """Sums of vectors weighted by the rows of ``mix``: (m, n), (B, n, D) -> (B, m, D)."""
    return F.linear(sparse.transpose(1, 2), mix).transpose(1, 2)


def pair_places(count: int) -> Tensor:
    """Places of the pairs of ``count`` vectors in their flattened matrix of products, row by row of
    the lower triangle: the pairs among the first vectors are the first pairs.

    **Example**

    >>> pair_places(3).tolist()
    [3, 6, 7]
    """
    i, j = torch.tril_indices(count, count, offset=-1)
    return i * count + j


def mixed_to(width: int) -> int:
    """Vectors whose pairs, with one more vector, are about ``width``.

    **Example**

    >>> mixed_to(128), 16 * 17 // 2
    (16, 136)
    """
    return max(1, round((2 * width) ** 0.5))


class EmbedFC(nn.Module):
    """``relu(norm(C sparse))``, mixtures of the vectors.

    **Shape** ``(B, n, D) -> (B, count, D)``.
    """

    AXES: ClassVar[Axes] = {"mix": ("count", "vectors")}

    def __init__(self, *, vectors: int, count: int, dim: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(nn.init.xavier_normal_(torch.empty(count, vectors)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, sparse: Tensor) -> Tensor:
        return self.norm(mixtures(self.mix, sparse)).relu()


class SparseTransformer(nn.Module):
    """One post-norm transformer layer over ``count`` mixtures of the vectors; the norms start at a
    gain of .17, so that it does not outweigh the other operators. **Shape** as `EmbedFC`."""

    AXES: ClassVar[Axes] = {"mix": ("count", "vectors")}

    def __init__(self, *, vectors: int, count: int, dim: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(nn.init.xavier_normal_(torch.empty(count, vectors)))
        self.heads = next(heads for heads in (8, 4, 2, 1) if dim % heads == 0)
        self.queries_keys_values = linear(dim, 3 * dim)
        self.output = linear(dim, dim)
        self.hidden, self.back = linear(dim, dim), linear(dim, dim)
        self.attended, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        for norm in (self.attended, self.norm):
            nn.init.constant_(norm.weight, 0.17)

    def forward(self, sparse: Tensor) -> Tensor:
        x = mixtures(self.mix, sparse)  # (B, m, D)
        rows, count, dim = x.shape[0], x.shape[1], x.shape[2]
        qkv = self.queries_keys_values(x).view(rows, count, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, m, d) each
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, count, dim)
        x = self.attended(x + self.output(mixed))
        return self.norm(x + self.back(self.hidden(x).relu()))


class ToSparse(nn.Module):
    """`MERGED` normalised vectors of a dense output. **Shape** ``(B, width) -> (B, MERGED, D)``."""

    AXES: ClassVar[Axes] = {"linear.weight": ("merged", "width")}

    def __init__(self, *, width: int, dim: int) -> None:
        super().__init__()
        self.count, self.dim = MERGED, dim
        self.linear = linear(width, MERGED * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, dense: Tensor) -> Tensor:
        return self.norm(self.linear(dense).view(dense.shape[0], self.count, self.dim))


class ToDense(nn.Module):
    """``norm(W sum_{i < j} s_i * s_j)``. **Shape** ``(B, n, D) -> (B, width)``."""

    AXES: ClassVar[Axes] = {"linear.weight": ("width", "dim"), **_NORM}

    def __init__(self, *, width: int, dim: int) -> None:
        super().__init__()
        self.linear = linear(dim, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, sparse: Tensor) -> Tensor:
        # (sum^2 - squares) / 2 would lose digits that the norm then blows up
        before = sparse.cumsum(1)[:, :-1]
        return self.norm(self.linear((before * sparse[:, 1:]).sum(1)))  # (B, width)


DENSE_OPS: dict[str, Any] = {
    "fc": FullyConnected,
    "gating": Gating,
    "sum": Sum,
    "dot_product": DotProduct,
}
SPARSE_OPS: dict[str, Any] = {"embed_fc": EmbedFC, "transformer": SparseTransformer}


class ChoiceBlock(nn.Module):
    """A block of `BlockConfig`: dense outputs ``(B, w_s)`` and vectors ``(B, n_s, D)`` of all
    sources -> its own ``(B, dense_width)`` and ``(B, vectors, D)``."""

    def __init__(
        self, config: BlockConfig, widths: Sequence[int], counts: Sequence[int], dim: int
    ) -> None:
        super().__init__()
        self.left: List[int] = list(config.dense_from)
        self.right: List[int] = list(config.right_from or config.dense_from)
        self.vectors: List[int] = list(config.sparse_from)
        vectors = sum(counts[s] for s in self.vectors)
        self.dense_op = DENSE_OPS[config.dense_op](
            left=sum(widths[s] for s in self.left),
            right=sum(widths[s] for s in self.right),
            vectors=vectors,
            width=config.dense_width,
            dim=dim,
        )
        self.sparse_op = SPARSE_OPS[config.sparse_op](
            vectors=vectors, count=config.sparse_count, dim=dim
        )
        # Optional parts are lists of none or one: the graph holds no dead branch.
        self.to_sparse, self.to_dense = nn.ModuleList(), nn.ModuleList()
        if config.to_sparse:
            self.to_sparse.append(ToSparse(width=config.dense_width, dim=dim))
        if config.to_dense:
            self.to_dense.append(ToDense(width=config.dense_width, dim=dim))

    def forward(self, dense: List[Tensor], sparse: List[Tensor]) -> Tuple[Tensor, Tensor]:
        vectors = torch.cat([sparse[s] for s in self.vectors], dim=1)  # (B, n, D)
        left = torch.cat([dense[s] for s in self.left], dim=1)
        right = torch.cat([dense[s] for s in self.right], dim=1)
        d = self.dense_op(left, right, vectors)  # (B, w)
        s = self.sparse_op(vectors)  # (B, m, D)
        new_dense, new_sparse = d, s
        for merge in self.to_dense:
            new_dense = new_dense + merge(s)
        for merge in self.to_sparse:
            new_sparse = torch.cat([new_sparse, merge(d)], dim=1)
        return new_dense, new_sparse
