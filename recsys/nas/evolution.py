"""Regularised evolution: parents are the best of a few drawn at random, the oldest die."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from recsys.nas.space import Genome, Space

MUTATION_STEPS = 5
"""How often the number of mutations falls: every 48 of 240 generations, as published."""


@dataclass
class Evolution:
    """All genomes that were ever scored (smaller is better), in order; the last ``population`` of
    them are alive. Real et al. 2019, https://arxiv.org/abs/1802.01548.

    A child is the winner of ``tournament`` random ones alive after some mutations, fewer from
    generation to generation: ``(generations - g) // step + 1`` with `MUTATION_STEPS` steps. No
    network is scored twice: genomes of the same `Space.network` are the same.
    """

    space: Space
    population: int = 128
    generations: int = 240
    children: int = 8
    tournament: int = 64
    genomes: list[Genome] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def generation(
        self, score: Callable[[Genome], float], rng: np.random.Generator, number: int
    ) -> int:
        """Scores generation ``number``: 0 is drawn at random, later ones are children. Returns how
        many it scored: fewer where a hundred tries give nothing new."""
        seen = {self.space.network(genome) for genome in self.genomes}
        alive = range(max(0, len(self.genomes) - self.population), len(self.genomes))
        new: list[Genome] = []
        for _ in range(self.population if number == 0 else self.children):
            for _ in range(100):
                genome = self._drawn(alive, number, rng)
                network = self.space.network(genome)
                if network not in seen:
                    seen.add(network)
                    new.append(genome)
                    break
        for genome in new:
            genome.setflags(write=False)
            self.scores.append(score(genome))
            self.genomes.append(genome)
        return len(new)

    def ranked(self) -> list[int]:
        """Places of all genomes, the best first."""
        return sorted(range(len(self.scores)), key=lambda place: (self.scores[place], place))

    def _drawn(self, alive: range, number: int, rng: np.random.Generator) -> Genome:
        if number == 0:
            return self.space.sampled(rng)
        drawn = rng.choice(alive, min(self.tournament, len(alive)), replace=False)
        genome = self.genomes[min(drawn, key=lambda place: (self.scores[place], place))]
        step = max(1, self.generations // MUTATION_STEPS)
        for _ in range((self.generations - number) // step + 1):
            genome = self.space.mutated(genome, rng)
        return genome
