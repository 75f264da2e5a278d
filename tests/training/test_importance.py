"""Permutation importance: what moves, what is measured, what the intervals mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from recsys.training import importance
from recsys.training.importance import Importance, importance_figure, permutation_importance
from recsys.training.significance import auc_difference, auc_mean_difference
from recsys.types import Batch, InputField

INPUTS = (
    InputField("good", "good", "id", "int"),
    InputField("twin", "both", "id", "int"),
    InputField("idle", "idle", "id", "int"),
    InputField("number", "both", "float", "int"),
    InputField("price", "price", "float", "float"),
    InputField("seen", "seen", "ids", "int", 4),
    InputField("tags", "tags", "ids", "int"),
)


def rows(count: int, seed: int = 0) -> tuple[Batch, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 8, (count, 3))
    floats = np.stack([ids[:, 1].astype(float), rng.normal(size=count)], 1)
    floats[::7, 1] = np.nan
    lengths = rng.integers(0, 5, (count, 2))
    lists = [
        np.where(np.arange(4) < n[:, None], rng.integers(0, 9, (count, 4)), -1) for n in lengths.T
    ]
    logit = 1.2 * (ids[:, 0] - 3.5) + 0.8 * np.nan_to_num(floats[:, 1])
    labels = (rng.random(count) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    tensors = [torch.from_numpy(part) for part in lists]
    return Batch(
        torch.from_numpy(ids), torch.from_numpy(floats), tensors, torch.from_numpy(lengths)
    ), labels


def score(batch: Batch) -> np.ndarray:
    """Leans on ``good`` and ``price``, a little on the noise of ``both`` and ``seen``; ``idle`` and
    ``tags`` do nothing."""
    logit = 1.2 * (batch.ids[:, 0] - 3.5) + 0.8 * torch.nan_to_num(batch.floats[:, 1])
    logit = logit + 0.2 * (batch.ids[:, 1] == 3) + 0.1 * batch.floats[:, 0].cos()
    return torch.sigmoid(logit + 0.1 * batch.lengths[:, 0]).float().numpy()


class Recorder:
    """Scores, and keeps every batch."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Batch]] = {}
        self.pending: list[Batch] = []
        self.advanced = 0

    def score(self, batch: Batch) -> np.ndarray:
        self.pending.append(batch)
        return score(batch)

    def advance(self, count: int, note: str) -> None:
        assert count == len(self.pending[-1].ids)
        self.calls.setdefault(note, []).append(self.pending[-1])
        self.advanced += count

    def of(self, note: str, repeat: int, count: int) -> Batch:
        """The rows of one scoring, put together again."""
        parts = self.calls[note]
        per = math.ceil(count / importance.BATCH_ROWS)
        parts = parts[repeat * per : (repeat + 1) * per]
        lists = [torch.cat(held) for held in zip(*(part.lists for part in parts), strict=True)]
        ids, floats, lengths = (
            torch.cat([getattr(part, name) for part in parts])
            for name in ("ids", "floats", "lengths")
        )
        return Batch(ids, floats, lists, lengths)


def explain(raw: Batch, labels: np.ndarray, **settings: int) -> list[Importance]:
    return permutation_importance(score, raw, labels, INPUTS, **settings)[1]


def named(found: list[Importance]) -> dict[str, Importance]:
    return {entry.column: entry for entry in found}


def test_useful_first_useless_cover_zero_and_unused_are_exactly_zero() -> None:
    raw, labels = rows(3000)
    found = explain(raw, labels)
    assert [entry.column for entry in found[:2]] == ["good", "price"]
    by_name = named(found)
    assert set(by_name) == {"good", "both", "idle", "price", "seen", "tags"}
    for column in ("good", "price"):
        assert by_name[column].auc_drop.low > 0.015
        assert by_name[column].logloss_rise.low > 0.02
    for column in ("both", "seen"):
        for estimate in by_name[column][1:]:
            assert estimate.low < 0 < estimate.high
    for column in ("idle", "tags"):
        for estimate in by_name[column][1:]:
            assert tuple(estimate) == (0.0, 0.0, 0.0)
            assert math.copysign(1.0, estimate.value) == 1.0


def test_one_column_moves_whole_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "BATCH_ROWS", 64)
    raw, labels = rows(200)
    seen = Recorder()
    permutation_importance(seen.score, raw, labels, INPUTS, repeats=2, advance=seen.advance)
    assert seen.advanced == 200 * (1 + 2 * 6)
    assert max(len(batch.ids) for batch in seen.pending) == 64
    base = seen.of("as it is", 0, 200)

    def columns(batch: Batch) -> dict[str, torch.Tensor]:
        """Everything that belongs to each column, side by side."""
        lists = [
            torch.cat([values, batch.lengths[:, [f]]], 1) for f, values in enumerate(batch.lists)
        ]
        both = torch.cat([batch.ids[:, [1]].double(), batch.floats[:, [0]]], 1)
        return {
            "good": batch.ids[:, [0]],
            "both": both,
            "idle": batch.ids[:, [2]],
            "price": batch.floats[:, [1]].nan_to_num(99.0),
            "seen": lists[0],
            "tags": lists[1],
        }

    before = columns(base)
    for column in before:
        once, twice = (columns(seen.of(column, repeat, 200)) for repeat in (0, 1))
        assert not torch.equal(once[column], twice[column])
        for shuffled in (once, twice):
            for name, values in shuffled.items():
                assert torch.equal(values, before[name]) == (name != column)
            assert sorted(shuffled[column].tolist()) == sorted(before[column].tolist())


def test_values_are_differences_of_plain_metrics() -> None:
    raw, labels = rows(400)
    raw.floats[:, 1] = torch.linspace(-2, 2, 400)  # no two alike: a row is known by its price
    seen = Recorder()
    scores, found = permutation_importance(
        seen.score, raw, labels, INPUTS, repeats=3, advance=seen.advance
    )
    np.testing.assert_array_equal(scores, score(raw))
    base = seen.of("as it is", 0, 400)
    y = labels[np.searchsorted(raw.floats[:, 1].numpy(), base.floats[:, 1].numpy())]
    shuffled = [score(seen.of("good", repeat, 400)) for repeat in range(3)]
    drop = roc_auc_score(y, score(base)) - np.mean([roc_auc_score(y, s) for s in shuffled])
    losses = [log_loss(y, s.astype(np.float64)) for s in shuffled]
    rise = np.mean(losses) - log_loss(y, score(base).astype(np.float64))
    good = named(found)["good"]
    assert good.auc_drop.value == pytest.approx(drop, abs=1e-12)
    assert good.logloss_rise.value == pytest.approx(rise, abs=1e-9)


def test_order_of_rows_does_not_matter() -> None:
    raw, labels = rows(500)
    order = np.random.default_rng(4).permutation(500)
    which = torch.from_numpy(order)
    moved = Batch(
        raw.ids[which], raw.floats[which], [part[which] for part in raw.lists], raw.lengths[which]
    )
    scores, found = permutation_importance(score, raw, labels, INPUTS, repeats=2, seed=7)
    again, same = permutation_importance(score, moved, labels[order], INPUTS, repeats=2, seed=7)
    assert found == same
    np.testing.assert_array_equal(again, scores[order])


def test_seeds_decide_and_other_inputs_do_not() -> None:
    raw, labels = rows(500)
    first = named(explain(raw, labels, seed=1))
    assert first == named(explain(raw, labels, seed=1))
    assert first["good"] != named(explain(raw, labels, seed=2))["good"]
    fewer = permutation_importance(score, raw, labels, [*INPUTS[:-1]], seed=1)[1]
    assert named(fewer)["good"] == first["good"]


def test_intervals_of_a_useless_column_cover_zero_as_often_as_they_say() -> None:
    """200 data sets; the model leans on pure noise, so the true importance of it is 0."""
    inputs = (
        InputField("x", "x", "float", "float"),
        InputField("noise", "noise", "float", "float"),
    )
    none = torch.zeros(300, 0, dtype=torch.int64)

    def model(batch: Batch) -> np.ndarray:
        return torch.sigmoid(batch.floats[:, 0] + 0.7 * batch.floats[:, 1]).float().numpy()

    covered = np.zeros(2)
    for trial in range(200):
        rng = np.random.default_rng(trial)
        x = rng.normal(size=(300, 2))
        labels = (rng.random(300) < 1 / (1 + np.exp(-x[:, 0]))).astype(np.float32)
        raw = Batch(none, torch.from_numpy(x), [], none)
        _, found = permutation_importance(model, raw, labels, inputs, repeats=3, seed=trial)
        noise = named(found)["noise"]
        covered += [estimate.low <= 0 <= estimate.high for estimate in noise[1:]]
    assert (covered >= 183).all(), covered  # 190 expected, 3.1 its standard deviation
    assert (covered <= 199).all(), covered


def test_intervals_of_a_strong_column_cover_the_true_rise() -> None:
    """All shuffles share the values of the rows: more of them do not make those any surer."""

    def losses(x: np.ndarray, z: np.ndarray, y: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(-(0.3 * x + 2 * z)))
        return -np.where(y == 1, np.log(p), np.log1p(-p))

    def draw(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(count, 2))
        return x, rng.random(count) < 1 / (1 + np.exp(-(0.3 * x[:, 0] + 2 * x[:, 1])))

    x, y = draw(400_000, np.random.default_rng(0))
    truth = float(np.mean(losses(x[:, 0], np.roll(x[:, 1], 1), y) - losses(x[:, 0], x[:, 1], y)))
    inputs = tuple(InputField(name, name, "float", "float") for name in "xz")
    none = torch.zeros(300, 0, dtype=torch.int64)

    def model(batch: Batch) -> np.ndarray:
        return torch.sigmoid(0.3 * batch.floats[:, 0] + 2 * batch.floats[:, 1]).float().numpy()

    covered = 0
    for trial in range(200):
        x, y = draw(300, np.random.default_rng(1 + trial))
        raw = Batch(none, torch.from_numpy(x), [], none)
        _, found = permutation_importance(model, raw, y.astype(np.float32), inputs, seed=trial)
        rise = named(found)["z"].logloss_rise
        covered += rise.low <= truth <= rise.high
    assert 187 <= covered <= 200  # .97 expected; .865 where shuffles count as independent


def test_contrast_of_several_has_delongs_variance() -> None:
    """Against the definition: placements by counting pairs, their covariance matrices, L S L'."""
    rng = np.random.default_rng(3)
    labels = (rng.random(60) < 0.4).astype(np.float32)
    columns = [labels + rng.normal(size=60).round(1) for _ in range(4)]
    positive = labels == 1
    v10, v01 = [], []
    for scores in columns:
        wins = np.sign(scores[positive][:, None] - scores[~positive][None]) / 2 + 0.5
        v10.append(wins.mean(1))
        v01.append(wins.mean(0))
    covariance = np.cov(v10) / positive.sum() + np.cov(v01) / (~positive).sum()
    weights = np.array([-1, 1 / 3, 1 / 3, 1 / 3])
    value = float(weights @ np.mean(v10, axis=1))
    half = 1.959963984540054 * math.sqrt(weights @ covariance @ weights)
    found = auc_mean_difference(labels, columns[0], columns[1:])
    assert found[:3] == pytest.approx((value, value - half, value + half), abs=1e-12)
    assert auc_mean_difference(labels, columns[0], [columns[1]]) == auc_difference(
        labels, columns[0], columns[1]
    )


def test_figure_shows_the_most_important_on_top_with_both_measures() -> None:
    raw, labels = rows(500)
    found = explain(raw, labels)
    figure = importance_figure(found, "test")
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == [e.column for e in found]
    assert left.yaxis_inverted()
    for axes, estimates in (
        (left, [e.auc_drop for e in found]),
        (right, [e.logloss_rise for e in found]),
    ):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(
            [estimate.value for estimate in estimates]
        )
    many = [Importance(f"c{i}", *found[0][1:]) for i in range(100)]
    figure = importance_figure(many, "many")
    assert len(figure.axes[0].patches) == 60
    assert "first 60 of 100" in figure.get_suptitle()
