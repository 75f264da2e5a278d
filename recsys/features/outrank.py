"""OutRank: features by what they say about the label, before anything is trained.

Škrlj and Mramor 2023, https://arxiv.org/abs/2309.01552. Rows come in batches; a feature's score is
the median over the batches of its `relevance`. Optionally pairs of features are scored as if each
were one column, which finds what only two features together know (an AND, an XOR), and features are
put in the order of 3MR: relevance, less what is there already, plus what they add together with it.

What is noise: beside every score, the same column is scored against shuffled labels. Their spread
says how large a score chance may give a column of just these values; what is not beyond that, with
a chance of `ALPHA` for all features together, is noise. (A gamma distribution of the same mean and
spread stands for what chance gives, as it does for few values, where it is a chi-squared one.)

Unlike the published code: the correction is an expectation instead of one shift (see `relevance`),
numbers are binned by quantiles, pairs are never concatenated text, a short log is ranked, too, and
entries of one list are not taken for independent rows: chance is what lists have against shuffled
labels of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from recsys.features.relevance import (
    Array,
    Codes,
    entropy,
    information,
    pair_codes,
    redundancy,
    relevance,
)

Pair = tuple[str, str]

ALPHA = 0.01
"""Chance that any feature that knows nothing passes for one that does; of pairs likewise."""


class Column(NamedTuple):
    """A feature in a batch of N rows. ``row``: the row of each code, ``None`` if there is one code
    a row; ``known``: rows with a value."""

    codes: Codes
    row: Array | None
    known: int


class Score(NamedTuple):
    """Relevance in nats over the batches, median and the quartiles around it, and what chance alone
    would hardly exceed."""

    value: float
    low: float
    high: float
    floor: float


class Cross(NamedTuple):
    """Two features as one: its relevance, how much more that is than the sum of theirs (``gain``),
    and what they say about each other (``redundancy``); nats."""

    pair: Pair
    score: Score
    gain: float
    redundancy: float


@dataclass
class _Sample:
    """Of one column: information less chance of every batch, and information by chance."""

    scores: list[float] = field(default_factory=list)
    shuffled: list[float] = field(default_factory=list)

    def add(
        self, column: Codes, row: Array | None, labels: Array, shuffles: Sequence[Array]
    ) -> None:
        if len(column.codes) == 0:
            self.scores.append(0.0)
            return
        shuffled = [information(column, y if row is None else y[row]) for y in shuffles]
        if row is None:
            self.scores.append(relevance(column, labels))
        else:  # entries of a list share their row's label
            self.scores.append(information(column, labels[row]) - float(np.mean(shuffled)))
        self.shuffled += shuffled

    def score(self, tests: int) -> Score:
        """``tests``: columns that are scored at once."""
        low, middle, high = np.quantile(self.scores or [0.0], (0.25, 0.5, 0.75))
        return Score(float(middle), float(low), float(high), self._floor(tests))

    def _floor(self, tests: int) -> float:
        if len(self.shuffled) < 2:
            return 0.0
        mean, spread = float(np.mean(self.shuffled)), float(np.std(self.shuffled, ddof=1))
        if mean <= 0 or spread <= 1e-12:
            return 0.0
        z = NormalDist().inv_cdf(1 - ALPHA / max(tests, 1))
        ninth = (spread / mean) ** 2 / 9  # a ninth of what one over the gamma's shape is
        most = mean * (1 - ninth + z * ninth**0.5) ** 3 - mean  # Wilson and Hilferty 1931
        count = len(self.scores)
        # a median of several is 1.25 times as wide as their mean
        return most if count == 1 else most * 1.2533 / count**0.5


class OutRank:
    """Collects batches. ``pairs``: pairs of features to score in each batch, those seen least
    often first; features with lists are in none. ``shuffles``: of the labels of each batch, to
    learn what chance gives; ``seed``: of these."""

    def __init__(
        self, names: Sequence[str], *, pairs: int = 0, shuffles: int = 24, seed: int = 0
    ) -> None:
        self._names = list(names)
        self._pairs = pairs
        self._shuffles = shuffles
        self._rng = np.random.default_rng([seed, 0x6F7574])  # not that of a log made with a seed
        self._singles = {name: _Sample() for name in names}
        self._crosses: dict[Pair, _Sample] = {}
        self._shared: dict[Pair, list[float]] = {}
        self._rows = 0
        self._known = dict.fromkeys(names, 0)
        self._labels = np.zeros(2, np.int64)

    def add(
        self,
        columns: Mapping[str, Column],
        labels: Array,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes a batch: ``labels`` (N,) int64 in {0, 1}. ``advance``: called once a pair."""
        self._rows += len(labels)
        self._labels += np.bincount(labels, minlength=2)
        shuffles = [self._rng.permutation(labels) for _ in range(self._shuffles)]
        for name in self._names:
            column = columns[name]
            self._singles[name].add(column.codes, column.row, labels, shuffles)
            self._known[name] += column.known
        plain = [name for name in self._names if columns[name].row is None]
        for pair in self._least_seen([*combinations(plain, 2)]):
            a, b = (columns[name].codes for name in pair)
            together = pair_codes(a, b)
            self._crosses.setdefault(pair, _Sample()).add(together, None, labels, shuffles)
            self._shared.setdefault(pair, []).append(redundancy(a, b, together, self._rng))
            advance()

    @property
    def label_entropy(self) -> float:
        """What there is to know of the label: nats."""
        return entropy(self._labels)

    def scores(self) -> dict[str, Score]:
        """Of every feature, the most relevant first."""
        found = {name: of.score(len(self._names)) for name, of in self._singles.items()}
        return dict(sorted(found.items(), key=lambda item: (-item[1].value, item[0])))

    def coverage(self) -> dict[str, float]:
        """The share of rows in which a feature has a value."""
        return {name: known / max(self._rows, 1) for name, known in self._known.items()}

    def crosses(self) -> list[Cross]:
        """Of every pair that was scored, the greatest gain first."""
        own = self.scores()
        found = []
        for pair, sample in self._crosses.items():
            score = sample.score(len(self._crosses))
            gain = score.value - sum(max(own[name].value, 0.0) for name in pair)
            found.append(Cross(pair, score, gain, float(np.median(self._shared[pair]))))
        return sorted(found, key=lambda cross: (-cross.gain, cross.pair))

    def three_mr(self) -> list[str]:
        """Features in the order of 3MR: next is the one of the greatest relevance, less its median
        redundancy with those taken, plus its median relevance together with each of them; all
        three scaled to 0..1. Only features of which pairs were scored."""
        crosses = self.crosses()
        shared = _scaled({cross.pair: cross.redundancy for cross in crosses})
        together = _scaled({cross.pair: cross.score.value for cross in crosses})
        in_pairs = {name for cross in crosses for name in cross.pair}
        own = self.scores()
        left = _scaled({name: own[name].value for name in own if name in in_pairs})
        taken: list[str] = []
        while left:

            def merit(name: str) -> float:
                pairs = [(a, name) if (a, name) in shared else (name, a) for a in taken]
                pairs = [pair for pair in pairs if pair in shared]
                if not pairs:
                    return left[name]
                less = float(np.median([shared[pair] for pair in pairs]))
                return left[name] - less + float(np.median([together[pair] for pair in pairs]))

            best = max(left, key=merit)
            taken.append(best)
            del left[best]
        return taken

    def _least_seen(self, pairs: list[Pair]) -> list[Pair]:
        if len(pairs) <= self._pairs:
            return pairs
        order = self._rng.permutation(len(pairs))
        seen = np.array([len(self._shared.get(pair, ())) for pair in pairs])
        chosen = order[np.argsort(seen[order], kind="stable")[: self._pairs]]
        return [pairs[place] for place in chosen]


def _scaled(values: Mapping[Any, float]) -> dict[Any, float]:
    """Least to 0, greatest to 1; all 0 if they are equal."""
    if not values:
        return {}
    least, most = min(values.values()), max(values.values())
    return {key: (value - least) / ((most - least) or 1.0) for key, value in values.items()}
