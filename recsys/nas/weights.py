"""One set of weights for all networks of a space: every network is a slice of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from recsys.embeddings import EmbeddingLayer
from recsys.layers.block_config import MERGED, BlockConfig
from recsys.layers.choice_block import (
    DENSE_OPS,
    SPARSE_OPS,
    DotProduct,
    ToDense,
    ToSparse,
    mixed_to,
    pair_places,
)
from recsys.layers.init import linear
from recsys.models.nasrec import ChoiceNet, Stem
from recsys.nas.space import Space
from recsys.types import Batch, FieldSpec

Segments = list[tuple[int, int]]
"""Places of one axis of a shared weight that a network uses: (start, length) each."""


class SharedNASRec(nn.Module):
    """A `NASRec` whose network can be chosen anew for every batch.

    ``chosen`` runs as the very modules of `NASRec`, over slices of the weights here: leading rows
    for its widths, the columns of its sources for its inputs. So a chosen network equals the one
    that is built with these slices, its layer norms included: the published supernet normalises
    over the largest width and masks afterwards, which no stand-alone network does.

    **Shape** batch of B rows -> logits ``(B,)``.
    """

    def __init__(
        self, space: Space, fields: Sequence[FieldSpec], embedding: EmbeddingLayer
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.stem = Stem(fields, embedding.dim)
        self.space, self.dim = space, embedding.dim
        # Where the output of each source starts among the columns of a weight that reads them all.
        widest, most = max(space.widths), max(space.counts) + MERGED
        self._width_at = [0, *accumulate([self.stem.width] + [widest] * space.blocks)]
        self._count_at = [0, *accumulate([self.stem.count] + [most] * space.blocks)]
        self.dense_ops, self.sparse_ops = nn.ModuleList(), nn.ModuleList()
        self.to_sparse, self.to_dense = nn.ModuleList(), nn.ModuleList()
        for place in range(space.blocks):
            left, vectors = self._width_at[place + 1], self._count_at[place + 1]
            sizes = {"left": left, "right": left, "vectors": vectors, "width": widest}
            self.dense_ops.append(
                nn.ModuleDict({op: DENSE_OPS[op](**sizes, dim=self.dim) for op in space.dense_ops})
            )
            count = max(space.counts)
            self.sparse_ops.append(
                nn.ModuleDict(
                    {
                        op: SPARSE_OPS[op](vectors=vectors, count=count, dim=self.dim)
                        for op in space.sparse_ops
                    }
                )
            )
            self.to_sparse.append(ToSparse(width=widest, dim=self.dim))
            self.to_dense.append(ToDense(width=widest, dim=self.dim))
        self.output = linear(widest + most * self.dim, 1)
        self.chosen: tuple[BlockConfig, ...] = ()
        self._last_skeleton: dict[tuple[BlockConfig, ...], ChoiceNet] = {}  # no submodule

    def forward(self, batch: Batch) -> Tensor:
        dense, sparse = self.stem(self.embedding(batch))
        logits: Tensor = functional_call(self.skeleton(), self.slices(), (dense, sparse))
        return logits

    def last(self, batch: Batch) -> Tensor:
        """What the output of the chosen network reads, (B, inputs of its last Linear)."""
        dense, sparse = self.stem(self.embedding(batch))
        net = _Last(self.skeleton())
        weights = {f"net.{name}": weight for name, weight in self.slices().items()}
        read: Tensor = functional_call(net, weights, (dense, sparse))
        return read

    def skeleton(self) -> ChoiceNet:
        """The chosen network without memory for weights."""
        if self.chosen not in self._last_skeleton:
            self._last_skeleton.clear()
            sizes = {"width": self.stem.width, "count": self.stem.count, "dim": self.dim}
            with torch.device("meta"), _Unfilled():
                net = ChoiceNet(self.chosen, **sizes)
            for module in net.modules():
                if isinstance(module, DotProduct):
                    pairs = pair_places(module.mix.shape[0] + 1)
                    module.pairs = pairs.to(self.output.weight.device)
            self._last_skeleton[self.chosen] = net
        return self._last_skeleton[self.chosen].train(self.training)

    def slices(self) -> dict[str, Tensor]:
        """The weights of the chosen network under the names of `ChoiceNet`, as parts of the shared
        ones, which their gradients reach."""
        found: dict[str, Tensor] = {}
        for place, block in enumerate(self.chosen):
            runs = self._runs(block)
            name = f"blocks.{place}"
            parts = {
                "dense_op": self.dense_ops[place][block.dense_op],  # type: ignore[index]
                "sparse_op": self.sparse_ops[place][block.sparse_op],  # type: ignore[index]
            }
            if block.to_sparse:
                parts["to_sparse.0"] = self.to_sparse[place]
            if block.to_dense:
                parts["to_dense.0"] = self.to_dense[place]
            for part, module in parts.items():
                for key, weight in module.named_parameters():
                    axes = [runs[axis] for axis in module.AXES.get(key, ())]
                    found[f"{name}.{part}.{key}"] = sliced(weight, axes)
        found["output.weight"] = sliced(self.output.weight, [None, self._read_last()])
        found["output.bias"] = self.output.bias
        return found

    def _runs(self, block: BlockConfig) -> Mapping[str, Segments]:
        """What `AXES` calls run over in the shared weights of a block."""
        widths = [self.stem.width, *(chosen.dense_width for chosen in self.chosen)]
        left = [(self._width_at[s], widths[s]) for s in block.dense_from]
        right = [(self._width_at[s], widths[s]) for s in block.right_from] or left
        longer = max(sum(length for _, length in side) for side in (left, right))
        k = mixed_to(block.dense_width)
        return {
            "left": left,
            "right": right,
            "longer": [(0, longer)],
            "width": [(0, block.dense_width)],
            "dim": [(0, self.dim)],
            "merged": [(0, MERGED * self.dim)],
            "mixtures": [(0, k)],
            "pairs": [(0, k * (k + 1) // 2)],
            "count": [(0, block.sparse_count)],
            "vectors": [run for s in block.sparse_from for run in self._vectors(s)],
        }

    def _vectors(self, source: int) -> Segments:
        """The vectors of one source."""
        start = self._count_at[source]
        if source == 0:
            return [(start, self.stem.count)]
        block = self.chosen[source - 1]
        merged = [(start + max(self.space.counts), MERGED)] if block.to_sparse else []
        return [(start, block.sparse_count), *merged]

    def _read_last(self) -> Segments:
        """Numbers of the last block that the output reads."""
        first, last = max(self.space.widths), len(self.chosen)
        start = self._count_at[last]
        vectors = [(at - start, length) for at, length in self._vectors(last)]
        dense = (0, self.chosen[-1].dense_width)
        return [dense, *((first + at * self.dim, n * self.dim) for at, n in vectors)]


class _Unfilled(TorchFunctionMode):
    """Tensors stay as they are made: to draw first values is most of the time of a skeleton."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_):
            return args[0]
        return func(*args, **(kwargs or {}))


class _Last(nn.Module):
    """`ChoiceNet.last` as a forward."""

    def __init__(self, net: ChoiceNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        return self.net.last(dense, sparse)


def sliced(weight: Tensor, axes: Sequence[Segments | None]) -> Tensor:
    """The part of ``weight`` that lies at ``axes[i]`` along its axis i; None, or no entry: all.

    **Example**

    >>> sliced(torch.arange(8).view(2, 4), [[(0, 1)], [(0, 1), (2, 2)]])
    tensor([[0, 2, 3]])
    """
    for axis, segments in enumerate(axes):
        if segments is None:
            continue
        parts = [weight.narrow(axis, start, length) for start, length in segments]
        weight = parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
    return weight
