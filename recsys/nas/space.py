"""Which networks of blocks there are: a genome is one of them as integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys.layers.block_config import BlockConfig, DenseOp, SparseOp
from recsys.types import InputError

Genome = npt.NDArray[np.int64]
"""(N * 9,): of each block `_DENSE` to `_TO_DENSE`; sources are bit masks over 0 to k - 1."""

_DENSE, _SPARSE, _WIDTH, _COUNT, _LEFT, _RIGHT, _VECTORS, _TO_SPARSE, _TO_DENSE = range(9)
_GENES = 9
_CONNECTIONS = (_LEFT, _RIGHT, _VECTORS)

OPS: dict[str, tuple[tuple[DenseOp, ...], tuple[SparseOp, ...]]] = {
    "small": (("fc", "dot_product"), ("embed_fc",)),
    "full": (("fc", "gating", "sum", "dot_product"), ("embed_fc", "transformer")),
}
"""Operators of the two spaces of the paper."""


@dataclass(frozen=True)
class Space:
    """Networks of ``blocks`` blocks with these operators, output widths and numbers of vectors, in
    each of which an operator reads at most ``most_sources`` earlier outputs."""

    blocks: int = 7
    dense_ops: tuple[DenseOp, ...] = OPS["full"][0]
    sparse_ops: tuple[SparseOp, ...] = OPS["full"][1]
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    counts: tuple[int, ...] = (16, 32, 48, 64)
    most_sources: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.blocks <= 32:
            raise InputError(f"blocks {self.blocks}: must be from 1 to 32")
        for name in ("widths", "counts"):
            values = getattr(self, name)
            if not values or min(values) < 1 or len(set(values)) < len(values):
                raise InputError(f"{name} {values}: give different numbers from 1 on")

    def sampled(self, rng: np.random.Generator) -> Genome:
        """One operator of each kind a block, evenly; 1 + Binomial(min(k - 1, 3), 1/2) sources of
        block k; widths, counts and mergers evenly."""
        genes = np.empty((self.blocks, _GENES), np.int64)
        for place in range(self.blocks):
            for gene in range(_GENES):
                genes[place, gene] = self._drawn(place, gene, rng)
        return genes.ravel()

    def widest(self, rng: np.random.Generator) -> Genome:
        """The whole of the shared weights of random operators: all sources, all widths."""
        genes = self.sampled(rng).reshape(self.blocks, _GENES)
        genes[:, _WIDTH] = int(np.argmax(self.widths))
        genes[:, _COUNT] = int(np.argmax(self.counts))
        for gene in _CONNECTIONS:
            genes[:, gene] = 2 ** (np.arange(self.blocks) + 1) - 1
        genes[:, _TO_SPARSE] = genes[:, _TO_DENSE] = 1
        return genes.ravel()

    def mutated(self, parent: Genome, rng: np.random.Generator) -> Genome:
        """One random block with, evenly, other sources of one input, or one other choice: its
        operators, its width, its number of vectors or one of its mergers."""
        genes = parent.reshape(self.blocks, _GENES).copy()
        place = int(rng.integers(self.blocks))
        if rng.random() < 0.5:
            changed = [int(rng.choice(_CONNECTIONS))]
        else:
            choices = [[_DENSE, _SPARSE], [_WIDTH], [_COUNT], [_TO_SPARSE], [_TO_DENSE]]
            changed = choices[rng.integers(len(choices))]
        for gene in changed:
            genes[place, gene] = self._drawn(place, gene, rng)
        return genes.ravel()

    def decode(self, genome: Genome) -> tuple[BlockConfig, ...]:
        """The network of a genome."""
        found = []
        for genes in genome.reshape(self.blocks, _GENES):
            op = self.dense_ops[genes[_DENSE]]
            right = _sources(genes[_RIGHT]) if op in ("gating", "sum") else ()
            found.append(
                BlockConfig(
                    dense_op=op,
                    sparse_op=self.sparse_ops[genes[_SPARSE]],
                    dense_width=self.widths[genes[_WIDTH]],
                    sparse_count=self.counts[genes[_COUNT]],
                    dense_from=_sources(genes[_LEFT]),
                    right_from=right,
                    sparse_from=_sources(genes[_VECTORS]),
                    to_sparse=bool(genes[_TO_SPARSE]),
                    to_dense=bool(genes[_TO_DENSE]),
                )
            )
        return tuple(found)

    def network(self, genome: Genome) -> tuple[BlockConfig, ...]:
        """What a genome computes: genomes that differ only in what nothing reads have the same."""
        return live(self.decode(genome))

    def _drawn(self, place: int, gene: int, rng: np.random.Generator) -> int:
        """A value of one gene of block ``place``, from 0."""
        if gene in _CONNECTIONS:
            sources = place + 1  # the stem and the blocks before
            count = 1 + int(rng.binomial(min(sources, self.most_sources) - 1, 0.5))
            return int((1 << rng.choice(sources, count, replace=False)).sum())
        sizes = {
            _DENSE: len(self.dense_ops),
            _SPARSE: len(self.sparse_ops),
            _WIDTH: len(self.widths),
            _COUNT: len(self.counts),
        }
        return int(rng.integers(sizes.get(gene, 2)))


def _sources(mask: int) -> tuple[int, ...]:
    return tuple(bit for bit in range(int(mask).bit_length()) if mask >> bit & 1)


def live(blocks: Sequence[BlockConfig]) -> tuple[BlockConfig, ...]:
    """The same function without blocks that nothing reads; of a block that is read in part, the
    other half is the cheapest there is."""
    last = len(blocks)
    dense_read, sparse_read = {last}, {last}
    kept: dict[int, BlockConfig] = {}
    for number in range(last, 0, -1):
        block = blocks[number - 1]
        to_sparse = block.to_sparse and number in sparse_read
        to_dense = block.to_dense and number in dense_read
        dense, sparse = number in dense_read or to_sparse, number in sparse_read or to_dense
        if not dense and not sparse:
            continue
        changes: dict[str, object] = {"to_sparse": to_sparse, "to_dense": to_dense}
        if dense:
            dense_read |= {*block.dense_from, *block.right_from}
        else:
            changes |= {"dense_op": "fc", "dense_width": 1, "dense_from": (0,), "right_from": ()}
        if not sparse:
            changes |= {"sparse_op": "embed_fc", "sparse_count": 1}
        if sparse or block.dense_op == "dot_product":
            sparse_read |= set(block.sparse_from)
        else:
            changes["sparse_from"] = (0,)
        kept[number] = block.model_copy(update=changes)
    new = {0: 0, **{number: place for place, number in enumerate(sorted(kept), start=1)}}
    return tuple(
        block.model_copy(
            update={
                key: tuple(new[source] for source in getattr(block, key))
                for key in ("dense_from", "right_from", "sparse_from")
            }
        )
        for _, block in sorted(kept.items())
    )
