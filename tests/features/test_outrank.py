"""OutRank over batches: medians, controls, pairs and the order of 3MR."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.features.outrank import Column, OutRank
from recsys.features.relevance import Array, codes_of, relevance

ROWS = 4_000


def batch(seed: int) -> tuple[dict[str, Array], Array]:
    """``good`` and its ``copy`` know the label in part, ``left`` and ``right`` only together,
    ``noise`` and ``constant`` nothing."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 2, ROWS), rng.integers(0, 2, ROWS)
    good = rng.integers(0, 6, ROWS)
    target = np.where(rng.random(ROWS) < 0.5, left ^ right, (good > 3).astype(int))
    columns = {
        "noise": rng.integers(0, 900, ROWS),
        "good": good,
        "copy": good * 5 + 1,
        "left": left,
        "right": right,
        "constant": np.full(ROWS, 7),
    }
    return columns, target


def plain(columns: dict[str, Array]) -> dict[str, Column]:
    return {name: Column(codes_of(values), None, ROWS) for name, values in columns.items()}


def ranked(pairs: int = 0, batches: int = 3, seed: int = 0) -> OutRank:
    found = OutRank(list(batch(0)[0]), pairs=pairs, seed=seed)
    for place in range(batches):
        columns, target = batch(place)
        found.add(plain(columns), target)
    return found


def test_scores_are_medians_over_batches_and_noise_is_below_its_floor() -> None:
    found = ranked()
    each = []
    for place in range(3):
        columns, target = batch(place)
        each.append(relevance(codes_of(columns["good"]), target))
    scores = found.scores()
    assert scores["good"].value == pytest.approx(np.median(each))
    assert scores["good"].low <= scores["good"].value <= scores["good"].high
    assert list(scores)[:2] == ["copy", "good"]
    assert scores["copy"] == scores["good"]
    assert scores["good"].value > 50 * scores["good"].floor > 0
    assert scores["constant"].value == pytest.approx(0, abs=1e-12)
    assert scores["noise"].floor > 5 * scores["good"].floor  # by its own number of values
    for name in ("noise", "constant", "left", "right"):
        assert scores[name].value <= scores[name].floor + 1e-12, name
    assert found.crosses() == []
    assert found.three_mr() == []


def test_a_weak_effect_of_two_values_is_no_noise_beside_columns_of_many() -> None:
    rng, rows = np.random.default_rng(3), 60_000
    weak, many = rng.integers(0, 2, rows), rng.integers(0, 10_000, rows)
    target = (rng.random(rows) < 0.234 + 0.032 * weak).astype(np.int64)
    found = OutRank(["weak", "many"])
    columns = {"weak": weak, "many": many}
    found.add({n: Column(codes_of(v), None, rows) for n, v in columns.items()}, target)
    scores = found.scores()
    assert scores["weak"].floor < scores["weak"].value < scores["many"].floor
    assert scores["many"].value < scores["many"].floor


def test_of_many_columns_and_pairs_of_noise_hardly_any_passes() -> None:
    passed = crossed = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sizes = [2, 3, 5, 20, 200, 1_000, 4_000, 2, 10, 50]
        names = [str(place) for place in range(len(sizes))]
        found = OutRank(names, pairs=100, shuffles=6)
        for _ in range(4):
            drawn = {n: rng.integers(0, k, 3_000) for n, k in zip(names, sizes, strict=True)}
            columns = {n: Column(codes_of(v), None, 3_000) for n, v in drawn.items()}
            found.add(columns, rng.integers(0, 2, 3_000))
        passed += sum(score.value > score.floor for score in found.scores().values())
        crossed += sum(cross.gain > cross.score.floor for cross in found.crosses())
    assert passed <= 1
    assert crossed <= 2  # of 180


def test_pairs_find_what_only_two_features_know() -> None:
    found = ranked(pairs=100)
    assert len(found.crosses()) == 15
    best = found.crosses()[0]
    assert best.pair == ("left", "right")
    assert best.gain == pytest.approx(best.score.value, abs=0.003)
    assert best.gain > 0.05
    assert abs(best.redundancy) < 0.01
    (copies,) = [cross for cross in found.crosses() if cross.pair == ("good", "copy")]
    assert copies.redundancy == pytest.approx(np.log(6), abs=0.02)
    assert copies.gain < -0.05


def test_order_of_3mr_puts_a_copy_behind_what_is_new() -> None:
    rng = np.random.default_rng(0)
    good, weak = rng.integers(0, 6, ROWS), rng.integers(0, 3, ROWS)
    target = np.where(rng.random(ROWS) < 0.7, good > 2, weak > 1).astype(np.int64)
    found = OutRank(["weak", "copy", "good"], pairs=3)
    found.add(plain({"weak": weak, "copy": good * 2, "good": good}), target)
    assert list(found.scores()) == ["copy", "good", "weak"]
    assert found.three_mr() == ["copy", "weak", "good"]
    order = ranked(pairs=100).three_mr()
    assert sorted(order) == sorted(batch(0)[0])
    assert abs(order.index("left") - order.index("right")) == 1  # one calls for the other


def test_few_pairs_a_batch_see_all_pairs_in_turn() -> None:
    found = OutRank(list(batch(0)[0]), pairs=5, seed=1)
    columns, target = batch(0)
    for done in range(1, 4):
        found.add(plain(columns), target)
        assert len(found.crosses()) == 5 * done
    once = {cross.pair for cross in found.crosses()}
    assert len(once) == 15


def test_seeds_move_what_is_shuffled_alone() -> None:
    a, b = ranked(pairs=100, seed=0), ranked(pairs=100, seed=1)
    for name, score in a.scores().items():
        assert score[:3] == b.scores()[name][:3]
    assert a.scores()["noise"].floor != b.scores()["noise"].floor
    again = ranked(pairs=100, seed=0)
    assert a.scores() == again.scores()
    assert (a.crosses(), a.three_mr()) == (again.crosses(), again.three_mr())


def test_lists_count_every_value_and_stay_out_of_pairs() -> None:
    target = np.array([1, 0, 1, 0] * 500)
    row = np.repeat(np.arange(2_000), 2)
    values = np.where(np.arange(4_000) % 2 == 0, target[row], 9)  # the second value is always 9
    row, values = row[2:], values[2:]  # the first row has none
    column = Column(codes_of(values), row, 1_999)
    found = OutRank(["tags", "flag", "empty"], pairs=10)
    flag = Column(codes_of(target), None, 2_000)
    none = Column(codes_of(np.zeros(0, np.int64)), np.zeros(0, np.int64), 0)
    found.add({"tags": column, "flag": flag, "empty": none}, target)
    scores = found.scores()
    assert scores["flag"].value == pytest.approx(np.log(2), abs=1e-3)
    assert scores["tags"].value == pytest.approx(np.log(2) / 2, abs=1e-3)
    assert scores["empty"].value == 0
    assert found.crosses() == []
    assert found.coverage() == {"tags": 1_999 / 2_000, "flag": 1.0, "empty": 0.0}


def test_lists_of_one_taste_are_not_taken_for_independent_rows() -> None:
    """All entries of a row come from its own few values, which say nothing of the label."""
    rng = np.random.default_rng(5)
    rows, length = 3_000, 20
    taste = rng.integers(0, 40, (rows, 1))
    values = (taste + rng.integers(0, 3, (rows, length))).ravel()
    row = np.repeat(np.arange(rows), length)
    target = rng.integers(0, 2, rows)
    found = OutRank(["seen", "plain"])
    seen = Column(codes_of(values), row, rows)
    found.add({"seen": seen, "plain": Column(codes_of(taste[:, 0]), None, rows)}, target)
    score = found.scores()["seen"]
    assert abs(score.value) < score.floor
    assert relevance(codes_of(values), target[row]) > score.floor  # each by itself
