"""Evolution of widths: which number of leading columns each feature keeps, under a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Genome = npt.NDArray[np.int64]
"""(G,) one width, from 1 on, per gene."""

PARENTS = 15
MUTATIONS = 10
CROSSOVERS = 10
RATE = 0.1
"""Chance of a gene to mutate. All four as published."""


@dataclass(frozen=True)
class Space:
    """Genomes between 1 and ``limits`` (G,). Gene g costs ``rows[g]`` floats for each unit of
    width; with ``fixed`` others a genome may cost at most ``most``, if there is such a budget."""

    limits: Genome
    rows: Genome
    fixed: int
    most: int | None

    def cost(self, genome: Genome) -> int:
        """Floats that are kept with these widths."""
        return self.fixed + int(self.rows @ genome)

    def drawn(self, rng: np.random.Generator) -> Genome:
        """Even widths, cut to the budget."""
        return self.cut(rng.integers(1, self.limits + 1), rng)

    def cut(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """``genome`` if it fits; else a copy with random genes narrowed until it does."""
        if self.most is None or self.cost(genome) <= self.most:
            return genome
        genome, excess = genome.copy(), self.cost(genome) - self.most
        while excess > 0:
            able = np.flatnonzero((genome > 1) & (self.rows > 0))
            assert len(able), "the narrowest genome fits"
            gene = rng.choice(able)
            genome[gene] -= 1
            excess -= int(self.rows[gene])
        return genome

    def even(self) -> Genome:
        """The same width for all genes, as far as their limits go: the widest that fits."""
        for width in range(int(self.limits.max(initial=1)), 0, -1):
            genome = np.minimum(self.limits, width)
            if self.most is None or self.cost(genome) <= self.most:
                return genome
        raise AssertionError("the narrowest genome fits")

    def mutated(self, parent: Genome, rng: np.random.Generator) -> Genome:
        """A copy in which each gene has a new width with chance `RATE`, and at least one has."""
        moved = rng.random(len(parent)) < RATE
        moved[rng.permutation(len(parent))[:1]] = True
        child = np.where(moved, rng.integers(1, self.limits + 1), parent)
        return self.cut(child, rng)

    def crossed(self, one: Genome, other: Genome, rng: np.random.Generator) -> Genome:
        """The first genes of ``one`` and the last of ``other``, at least one of each."""
        at = int(rng.integers(1, len(one)))
        return self.cut(np.concatenate([one[:at], other[at:]]), rng)


@dataclass
class Evolution:
    """All genomes that were ever scored, in order; the best of them are the parents (elitism).

    ``paper``: as published: the parents are the last generation alone, its first generation has no
    even genome, mutation never draws width 1, and cuts are drawn from 1 to the largest width, so
    that many children of few genes are copies. Size never counts.
    """

    space: Space
    paper: bool = False
    genomes: list[Genome] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Place of the best score; of equals the smallest genome, of these the first."""
        costs = [0 if self.paper else self.space.cost(genome) for genome in self.genomes]
        return max(range(len(costs)), key=lambda i: (self.scores[i], -costs[i], -i))

    def generation(
        self, score: Callable[[Genome], float], rng: np.random.Generator, number: int
    ) -> int:
        """Scores generation ``number``, from 0, of at most `MUTATIONS` + `CROSSOVERS` genomes;
        returns how many it were. None is scored twice."""
        new = self._first(rng) if number == 0 else self._children(rng)
        for genome in new:
            genome.setflags(write=False)
            self.scores.append(score(genome))
            self.genomes.append(genome)
        return len(new)

    def _first(self, rng: np.random.Generator) -> list[Genome]:
        count = MUTATIONS + CROSSOVERS
        if self.paper:
            return [self.space.drawn(rng) for _ in range(count)]
        return self._unseen([self.space.even], [lambda: self.space.drawn(rng)] * (count - 1))

    def _children(self, rng: np.random.Generator) -> list[Genome]:
        if self.paper:
            return self._published(rng)
        ranked = sorted(range(len(self.scores)), key=lambda i: (-self.scores[i], i))
        parents = [self.genomes[i] for i in ranked[:PARENTS]]

        def mutant() -> Genome:
            return self.space.mutated(parents[rng.integers(len(parents))], rng)

        def cross() -> Genome:
            if len(parents) < 2 or len(parents[0]) < 2:
                return mutant()
            one, other = rng.choice(len(parents), 2, replace=False)
            return self.space.crossed(parents[one], parents[other], rng)

        return self._unseen([mutant] * MUTATIONS, [cross] * CROSSOVERS)

    def _unseen(self, *makers: Sequence[Callable[[], Genome]]) -> list[Genome]:
        """One genome of each maker that was not scored yet; none where ten tries give no such."""
        seen = {genome.tobytes() for genome in self.genomes}
        found = []
        for maker in (one for group in makers for one in group):
            for _ in range(10):
                genome = maker()
                if genome.tobytes() not in seen:
                    seen.add(genome.tobytes())
                    found.append(genome)
                    break
        return found

    def _published(self, rng: np.random.Generator) -> list[Genome]:
        count = MUTATIONS + CROSSOVERS
        last = len(self.scores) - count
        ranked = sorted(range(last, len(self.scores)), key=lambda i: (-self.scores[i], i))
        parents = [self.genomes[i] for i in ranked]
        limits = self.space.limits
        children = []
        for parent in parents[:MUTATIONS]:
            moved = rng.random(len(parent)) < RATE
            children.append(
                np.where(moved, rng.integers(np.minimum(2, limits), limits + 1), parent)
            )
        for _ in range(CROSSOVERS):
            one, other = rng.integers(CROSSOVERS + 1, size=2)
            at = int(rng.integers(1, limits.max(initial=1) + 1))
            children.append(np.concatenate([parents[one][:at], parents[other][at:]]))
        return children
