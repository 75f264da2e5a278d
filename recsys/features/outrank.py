"""OutRank: features by what they say about the label, before anything is trained.

Škrlj and Mramor 2023, https://arxiv.org/abs/2309.01552. Rows come in batches; a feature's score is
the median over the batches of its `relevance`, so that one odd stretch of a log decides nothing.
Columns of random numbers run along as controls: what is not above the best of them is noise.
Optionally all pairs of features are scored as if each were one column, which finds what only two
features together know (an AND, an XOR), and puts features in the order of 3MR: relevance, less what
is there already, plus what they add together with it.

Unlike the published code: the correction is an expectation instead of one shift (see `relevance`),
numbers are binned by quantiles, pairs are never concatenated text, and a short log is ranked, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from recsys.features.relevance import Codes, codes_of, entropy, pair_codes, redundancy, relevance

Array = np.ndarray[Any, Any]
Pair = tuple[str, str]

CONTROLS = (2, 100, 2_000, 10_000)
"""Values of the random columns, of each of which there are `_TWINS`."""
_TWINS = 5


class Column(NamedTuple):
    """A feature in a batch of N rows. ``row``: the row of each code, ``None`` if there is one code
    a row; ``known``: rows with a value."""

    codes: Codes
    row: Array | None
    known: int


class Score(NamedTuple):
    """Relevance in nats over the batches: median and the quartiles around it."""

    value: float
    low: float
    high: float


class Cross(NamedTuple):
    """Two features as one: its relevance, how much more that is than the sum of theirs (``gain``),
    and what they say about each other (``redundancy``); nats."""

    pair: Pair
    score: Score
    gain: float
    redundancy: float


class OutRank:
    """Collects batches. ``pairs``: pairs of features to score in each batch, those seen least
    often first; features with lists are in none. ``seed``: of controls and shuffles."""

    def __init__(self, names: Sequence[str], *, pairs: int = 0, seed: int = 0) -> None:
        self._names = list(names)
        self._pairs = pairs
        self._rng = np.random.default_rng(seed)
        self._scores: dict[str, list[float]] = {name: [] for name in names}
        self._controls: dict[tuple[int, int], list[float]] = {}
        self._crosses: dict[Pair, list[float]] = {}
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
        for name in self._names:
            column = columns[name]
            own = labels if column.row is None else labels[column.row]
            self._scores[name].append(relevance(column.codes, own) if len(own) else 0.0)
            self._known[name] += column.known
        for count in CONTROLS:
            for twin in range(_TWINS):
                noise = codes_of(self._rng.integers(0, count, len(labels)))
                self._controls.setdefault((count, twin), []).append(relevance(noise, labels))
        plain = [name for name in self._names if columns[name].row is None]
        for pair in self._least_seen([*combinations(plain, 2)]):
            a, b = (columns[name].codes for name in pair)
            together = pair_codes(a, b)
            self._crosses.setdefault(pair, []).append(relevance(together, labels))
            self._shared.setdefault(pair, []).append(redundancy(a, b, together, self._rng))
            advance()

    @property
    def label_entropy(self) -> float:
        """What there is to know of the label: nats."""
        return entropy(self._labels)

    @property
    def floor(self) -> float:
        """The best score of a random column, at least 0."""
        return max([0.0, *(float(np.median(scores)) for scores in self._controls.values())])

    def scores(self) -> dict[str, Score]:
        """Of every feature, the most relevant first."""
        found = {name: _score(scores) for name, scores in self._scores.items()}
        return dict(sorted(found.items(), key=lambda item: (-item[1].value, item[0])))

    def coverage(self) -> dict[str, float]:
        """The share of rows in which a feature has a value."""
        return {name: known / max(self._rows, 1) for name, known in self._known.items()}

    def crosses(self) -> list[Cross]:
        """Of every pair that was scored, the greatest gain first."""
        own = self.scores()
        found = []
        for pair, scores in self._crosses.items():
            score = _score(scores)
            gain = score.value - own[pair[0]].value - own[pair[1]].value
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
        seen = np.array([len(self._crosses.get(pair, ())) for pair in pairs])
        chosen = order[np.argsort(seen[order], kind="stable")[: self._pairs]]
        return [pairs[place] for place in chosen]


def _score(scores: Sequence[float]) -> Score:
    low, middle, high = np.quantile(scores, (0.25, 0.5, 0.75)) if scores else (0.0, 0.0, 0.0)
    return Score(float(middle), float(low), float(high))


def _scaled(values: Mapping[Any, float]) -> dict[Any, float]:
    """Least to 0, greatest to 1; all 0 if they are equal."""
    if not values:
        return {}
    least, most = min(values.values()), max(values.values())
    return {key: (value - least) / ((most - least) or 1.0) for key, value in values.items()}
