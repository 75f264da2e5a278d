"""Ranking metrics against hand-computed values and a slow oracle."""

import math
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.training import ranking
from recsys.training.negatives import Negatives
from recsys.training.ranking import ranking_metrics, target_ranks
from recsys.types import Batch, InputError, Target

CPU = torch.device("cpu")
SPECIALS = 2


class Fixed:
    """Queries are rows of a matrix, chosen by the first column of ``floats``."""

    specials = SPECIALS

    def __init__(self, queries: Tensor, items: Tensor, bias: Tensor | None = None) -> None:
        self.queries, self.items = queries, items
        self.bias = torch.zeros(len(items)) if bias is None else bias
        self.asked: list[int] = []

    def __call__(self, batch: Batch) -> Tensor:
        return self.queries[batch.floats[:, 0].long()]

    def eval(self) -> None:
        pass

    def item_bias(self) -> Tensor:
        return self.bias

    def catalogue(self, start: int, count: int) -> Tensor:
        self.asked.append(count)
        return self.items[start : start + count]


class Histories:
    fingerprint = "histories"

    def __init__(self, histories: Sequence[Sequence[int]], targets: Sequence[int]) -> None:
        self.histories, self.targets = histories, targets

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[tuple[Batch, Target]]:
        for first in range(start * batch_size, len(self), batch_size):
            rows = range(first, min(first + batch_size, len(self)))
            width = max((len(self.histories[r]) for r in rows), default=0)
            lists = torch.zeros(len(rows), width, dtype=torch.int64)
            lengths = torch.zeros(len(rows), 1, dtype=torch.int64)
            for place, row in enumerate(rows):
                history = self.histories[row]
                lists[place, : len(history)] = torch.tensor(history, dtype=torch.int64)
                lengths[place] = len(history)
            number = torch.tensor(list(rows))
            empty = torch.zeros(len(rows), 0, dtype=torch.int64)
            batch = Batch(empty, number.float().unsqueeze(1), [lists], lengths)
            label = torch.tensor([self.targets[r] for r in rows], dtype=torch.int64)
            yield batch, Target(label, torch.ones(len(rows)), number)


def by_scores(scores: Sequence[Sequence[float]]) -> Fixed:
    """A model whose score matrix (rows, V) is given."""
    matrix = torch.tensor(scores, dtype=torch.float32)
    return Fixed(matrix, torch.eye(matrix.shape[1]))


def measure(model: Fixed, rows: Histories, **other: object) -> dict[str, float]:
    options: dict[str, object] = {
        "batch_size": 3,
        "device": CPU,
        "cutoffs": [1, 2],
        "filter_seen": True,
    }
    return ranking_metrics(model, rows, **(options | other))  # type: ignore[arg-type]


def test_values_by_hand() -> None:
    # Ids 0 and 1 are special; their high scores must not count.
    model = by_scores(
        [
            [9, 9, 5, 4, 3, 2],  # target 2: rank 1
            [9, 9, 5, 4, 3, 2],  # target 4, 2 seen: rank 2
            [9, 9, 5, 4, 3, 2],  # target 5: rank 4
            [9, 9, 5, 4, 3, 2],  # target unseen in training: never
        ]
    )
    rows = Histories([[3], [2], [], [5]], [2, 4, 5, 1])
    got = measure(model, rows, popularity=np.array([0, 0, 40, 30, 20, 10]))
    assert got["recall@1"] == 1 / 4
    assert got["recall@2"] == 2 / 4
    assert got["ndcg@1"] == 1 / 4
    assert got["ndcg@2"] == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert got["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 4)
    assert got["rows"] == 4
    # Best two: [2, 4], [3, 4], [2, 3], [2, 3]; percentiles of 2, 3, 4, 5: 7/8, 5/8, 3/8, 1/8.
    assert got["coverage@1"] == 2 / 4
    assert got["coverage@2"] == 3 / 4
    assert got["popularity@1"] == pytest.approx((7 + 5 + 7 + 7) / 8 / 4)
    assert got["popularity@2"] == pytest.approx((7 + 3 + 5 + 3 + 7 + 5 + 7 + 5) / 8 / 8)
    assert target_ranks(model, rows, batch_size=2, device=CPU, filter_seen=True).tolist() == [
        1,
        2,
        4,
        math.inf,
    ]


def test_seen_items_stay_without_the_flag() -> None:
    rows = Histories([[2]], [3])
    model = by_scores([[0, 0, 5, 4, 3]])
    assert measure(model, rows, filter_seen=False)["recall@1"] == 0
    assert measure(model, rows, filter_seen=True)["recall@1"] == 1


def test_a_seen_target_is_a_miss_only_when_seen_items_are_filtered() -> None:
    rows = Histories([[2, 3]], [2])
    model = by_scores([[0, 0, 5, 4, 3]])
    assert measure(model, rows, filter_seen=False)["mrr"] == 1
    assert measure(model, rows, filter_seen=True)["mrr"] == 0


@pytest.mark.parametrize("items", [30, 1000])
def test_a_constant_scorer_finds_nothing(items: int) -> None:
    """Also where all vectors are equal, and a product might round otherwise at the edges."""
    vectors = torch.randn(1, 37).repeat(items, 1)
    model = Fixed(torch.randn(7, 37), vectors)
    rows = Histories([[] for _ in range(7)], [2, 3, items - 1, items // 2, 9, 10, 11])
    got = measure(model, rows, cutoffs=[10], sampled=["uniform"])
    last = items - SPECIALS
    assert got["recall@10"] == 0
    assert got["mrr"] == pytest.approx(1 / last)
    assert got["sampled_uniform/mrr"] == pytest.approx(1 / min(101, last))


def test_random_scores_have_recall_k_over_v() -> None:
    generator = torch.Generator().manual_seed(3)
    items, users = 200, 4000
    model = Fixed(
        torch.randn(users, 16, generator=generator),
        torch.randn(items + SPECIALS, 16, generator=generator),
    )
    targets = torch.randint(SPECIALS, items + SPECIALS, (users,), generator=generator).tolist()
    got = measure(model, Histories([[]] * users, targets), cutoffs=[10], batch_size=500)
    share = 10 / items
    assert abs(got["recall@10"] - share) < 4 * math.sqrt(share / users)
    assert 0.8 < got["coverage@10"] <= 1


def test_scores_that_are_not_numbers_rank_last() -> None:
    rows = Histories([[], []], [2, 3])
    model = by_scores([[0, 0, 0, 1, 2], [0, 0, 0, 5, 2]])
    model.bias[2] = math.nan
    ranks = target_ranks(model, rows, batch_size=2, device=CPU, filter_seen=True)
    assert ranks[0] >= 3
    assert ranks[1] == 2


def test_no_rows() -> None:
    got = measure(by_scores([[0.0, 0, 1]]), Histories([], []), sampled=["uniform"])
    assert got["rows"] == 0
    assert math.isnan(got["recall@1"])
    assert math.isnan(got["sampled_uniform/mrr"])


def test_bad_settings_are_one_line() -> None:
    with pytest.raises(InputError, match=r"ranking.cutoffs is \[0\]"):
        measure(by_scores([[0.0, 0, 1]]), Histories([], []), cutoffs=[0])
    with pytest.raises(InputError, match="'all'; there are uniform, popularity"):
        measure(by_scores([[0.0, 0, 1]]), Histories([], []), sampled=["all"])


def oracle(
    scores: np.ndarray, rows: Histories, k: int, filter_seen: bool
) -> tuple[list[float], list[list[int]]]:
    ranks, tops = [], []
    for row, (history, target) in enumerate(zip(rows.histories, rows.targets, strict=True)):
        out = set(range(SPECIALS)) | (set(history) if filter_seen else set())
        left = [v for v in range(scores.shape[1]) if v not in out]
        others = [v for v in left if v != target and scores[row, v] >= scores[row, target]]
        ranks.append(1.0 + len(others) if target in left else math.inf)
        tops.append(sorted(left, key=lambda v: (-scores[row, v], v))[:k])
    return ranks, tops


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Histories]:
    users, items = draw(st.integers(1, 7)), draw(st.integers(3, 90))
    number = draw(st.integers(0, 2**31))
    generator = np.random.default_rng(number)
    levels = draw(st.sampled_from([1, 3, 1000]))  # few levels: many ties
    scores = generator.integers(0, levels, (users, items)).astype(np.float32)
    histories = [
        generator.integers(0, items, generator.integers(0, items)).tolist() for _ in range(users)
    ]
    return scores, Histories(histories, generator.integers(0, items, users).tolist())


@settings(max_examples=60, deadline=None)
@given(cases(), st.booleans(), st.sampled_from([2**22, 64 * 8, 1]), st.integers(1, 4))
def test_equals_the_oracle(
    case: tuple[np.ndarray, Histories], filter_seen: bool, cells: int, batch_size: int
) -> None:
    scores, rows = case
    ranks, tops = oracle(scores, rows, 5, filter_seen)
    before, ranking.CELLS = ranking.CELLS, cells
    try:
        model = by_scores(scores.tolist())
        got = target_ranks(model, rows, batch_size=batch_size, device=CPU, filter_seen=filter_seen)
        metrics = measure(model, rows, cutoffs=[5], filter_seen=filter_seen, batch_size=batch_size)
    finally:
        ranking.CELLS = before
    assert got.tolist() == ranks
    assert metrics["recall@5"] == pytest.approx(np.mean([rank <= 5 for rank in ranks]))
    assert metrics["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert metrics["coverage@5"] == pytest.approx(
        len({item for top in tops for item in top}) / (scores.shape[1] - SPECIALS)
    )


def test_memory_is_bounded_by_a_block() -> None:
    items, width, users = 100_000, 8, 512
    generator = torch.Generator().manual_seed(0)
    model = Fixed(
        torch.randn(users, width, generator=generator),
        torch.randn(items, width, generator=generator),
    )
    rows = Histories([[5, 6]] * users, list(range(2, users + 2)))
    sizes: list[int] = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                sizes.append(out.numel())
            return out

    tracemalloc.start()
    with Spy():
        measure(model, rows, cutoffs=[10], batch_size=256)
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(sizes) <= ranking.CELLS < 256 * items / 4
    assert max(model.asked) * 256 <= ranking.CELLS
    assert numpy_peak < 4 * 2**20


def test_sampled_metrics_do_not_depend_on_the_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    model = Fixed(torch.randn(40, 8, generator=generator), torch.randn(500, 8, generator=generator))
    rows = Histories([[3, 4, 5]] * 40, list(range(100, 140)))
    options = {
        "cutoffs": [10],
        "sampled": ["uniform", "popularity"],
        "popularity": np.arange(500),
    }
    first = measure(model, rows, batch_size=40, **options)
    assert first == pytest.approx(measure(model, rows, batch_size=7, **options))
    assert first["sampled_uniform/recall@10"] > first["recall@10"]
    assert first != measure(model, rows, batch_size=40, seed=1, **options)


def test_a_popularity_scorer_is_near_chance_among_popular_items() -> None:
    """Section 3 (e) 6 of the specification: high among even draws, low among popular ones."""
    items, users = 2000, 600
    counts = np.concatenate([[0, 0], 1e5 / np.arange(1, items + 1) ** 1.2])
    generator = np.random.default_rng(0)
    targets = generator.choice(items + 2, users, p=counts / counts.sum()).tolist()
    model = Fixed(torch.ones(users, 1), torch.from_numpy(counts).float().unsqueeze(1))
    got = measure(
        model,
        Histories([[]] * users, targets),
        cutoffs=[10],
        batch_size=200,
        sampled=["uniform", "popularity"],
        popularity=counts,
    )
    assert got["sampled_uniform/recall@10"] > 0.8
    assert got["sampled_popularity/recall@10"] < 0.55


def test_negatives_are_distinct_unknown_and_repeatable() -> None:
    weights = np.concatenate([[0, 0], 1 / np.arange(1, 999)])
    known = np.array([2, 3, 4, 0, 0, 7, 7])
    sampler = Negatives(weights=weights, count=100, seed=4)
    drawn = sampler.draw(9, known)
    assert len(set(drawn.tolist())) == len(drawn) == 100
    assert not set(drawn.tolist()) & {0, 1, 2, 3, 4, 7}
    assert np.array_equal(drawn, Negatives(weights=weights, count=100, seed=4).draw(9, known))
    assert not np.array_equal(drawn, sampler.draw(10, known))


def test_negatives_take_all_that_is_left() -> None:
    weights = np.array([0, 1e-9, 1, 1e6, 1e-3, 0])
    drawn = Negatives(weights=weights, count=100, seed=0).draw(0, np.array([2]))
    assert sorted(drawn.tolist()) == [1, 3, 4]
    assert len(Negatives(weights=weights, count=3, seed=0).draw(0, np.arange(6))) == 0


@pytest.mark.parametrize("others", [0, 40])
def test_negatives_follow_their_weights(others: int) -> None:
    """Two draws out of three items of weights 1, 2, 5: the chance of each set by hand. With
    ``others``, known items that most draws hit, the way over keys is taken too."""
    weights = np.concatenate([[1.0, 2, 5], np.full(others, 50.0)])
    known = np.arange(3, 3 + others)
    sampler = Negatives(weights=weights, count=2, seed=0)
    counts = dict.fromkeys([(0, 1), (0, 2), (1, 2)], 0)
    draws = 4000
    for row in range(draws):
        counts[tuple(sorted(sampler.draw(row, known).tolist()))] += 1
    expected = {
        (0, 1): 1 / 8 * 2 / 7 + 2 / 8 * 1 / 6,
        (0, 2): 1 / 8 * 5 / 7 + 5 / 8 * 1 / 3,
        (1, 2): 2 / 8 * 5 / 6 + 5 / 8 * 2 / 3,
    }
    for pair, share in expected.items():
        assert abs(counts[pair] / draws - share) < 4 * math.sqrt(share / draws)


def test_first_draws_by_rejection_follow_their_weights() -> None:
    """Enough items are left for the way of drawing and rejecting; known ones change nothing."""
    weights = np.array([4.0, 1, 1, 1, 1, 100])
    sampler = Negatives(weights=weights, count=1, seed=1)
    draws = [int(sampler.draw(row, np.array([5]))[0]) for row in range(4000)]
    assert abs(np.mean(np.array(draws) == 0) - 0.5) < 4 * math.sqrt(0.25 / 4000)
