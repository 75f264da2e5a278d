"""Items drawn for sampled ranking: without replacement, never what the user knows, by a seed."""

from __future__ import annotations

import numpy as np

__all__ = ["Negatives"]

_ROUNDS = 4
"""Rounds of drawing and rejecting before the rest is drawn over the whole catalogue."""


class Negatives:
    """Draws items one after another, each in proportion to its weight among those that are left.

    ``weights``: (V,) not negative; 0 is never drawn (special ids, for instance). ``count``: items
    a row; fewer only where fewer are left. ``seed``: the draw of a row depends on it and on the
    row's number alone, not on the batch that the row comes in.

    **Example**

    >>> drawn = Negatives(weights=np.array([0.0, 1, 1, 1]), count=2, seed=0).draw(0, np.array([2]))
    >>> sorted(drawn.tolist())
    [1, 3]
    """

    def __init__(self, *, weights: np.ndarray, count: int, seed: int) -> None:
        self._weights = np.asarray(weights, np.float64)
        assert self._weights.ndim == 1
        assert not (self._weights < 0).any()
        self._ends = np.cumsum(self._weights)
        self._possible = int(np.count_nonzero(self._weights))
        self._count, self._seed = count, seed

    def draw(self, row: int, known: np.ndarray) -> np.ndarray:
        """Distinct ids (C,) int64, none of them in ``known`` (any number of ids, repeats allowed).

        A repeated draw that is thrown away leaves the distribution of the next one as it would be
        without the drawn items; so does going over to exponential keys (Efraimidis and Spirakis
        2006, "Weighted random sampling with a reservoir") for what is still missing.
        """
        generator = np.random.default_rng([self._seed, row])
        known = np.unique(known)
        left = self._possible - int(np.count_nonzero(self._weights[known]))
        want = min(self._count, left)
        chosen = np.zeros(0, np.int64)
        rounds = _ROUNDS if 2 * want <= left else 0  # most of what is left: keys are faster
        for _ in range(rounds):
            if len(chosen) == want:
                break
            points = generator.random(2 * want) * self._ends[-1]
            drawn = np.searchsorted(self._ends, points, side="right")
            # The last end may be rounded below a point.
            drawn = drawn[(drawn < len(self._weights)) & ~np.isin(drawn, known)]
            drawn = np.concatenate([chosen, drawn])
            _, first = np.unique(drawn, return_index=True)
            chosen = drawn[np.sort(first)][:want]
        if len(chosen) < want:
            chosen = np.concatenate([chosen, self._rest(generator, known, chosen, want)])
        return chosen

    def _rest(
        self, generator: np.random.Generator, known: np.ndarray, chosen: np.ndarray, want: int
    ) -> np.ndarray:
        weights = self._weights.copy()
        weights[known] = 0
        weights[chosen] = 0
        open_ids = np.flatnonzero(weights)
        keys = generator.exponential(size=len(open_ids)) / weights[open_ids]
        missing = want - len(chosen)
        return open_ids[np.argsort(keys, kind="stable")[:missing]]
