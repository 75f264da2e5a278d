"""Attention as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, List, Tuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from recsys.training import explanations
from recsys.training.explanations import (
    AttentionMean,
    Attentive,
    attention,
    attention_figure,
    log_attention,
    top_pairs,
)
from recsys.training.tracking import NullTracker
from recsys.types import Batch, Target

LAYERS, HEADS, FIELDS = 2, 3, 4


class Given(nn.Module):
    """Attends as its ids say: ids (B, LAYERS * HEADS * F * F) are the logits of the maps."""

    def forward(self, batch: Batch) -> Tensor:
        return batch.ids.sum(1)

    def forward_with_attention(self, batch: Batch) -> Tuple[Tensor, List[Tensor]]:
        maps = batch.ids.view(-1, LAYERS, HEADS, FIELDS, FIELDS).float().softmax(-1)
        return self.forward(batch), list(maps.unbind(1))


class Plain(nn.Module):
    """Has no attention."""

    def forward(self, batch: Batch) -> Tensor:
        raise AssertionError("asked for nothing")


def batch(rows: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, LAYERS * HEADS * FIELDS * FIELDS)
    none = torch.zeros(rows, 0)
    return Batch(torch.randint(0, 4, shape, generator=generator), none, [], none.long())


class Encoded:
    """Rows in batches; remembers how they were asked for."""

    def __init__(self, rows: int) -> None:
        self.rows, self.asked, self.read = rows, {}, 0

    fingerprint = "f"

    def __len__(self) -> int:
        return self.rows

    def batches(self, batch_size: int, **how: Any) -> Iterator[tuple[Batch, Target]]:
        self.asked = how
        for first in range(0, self.rows, batch_size):
            count = min(batch_size, self.rows - first)
            self.read += count
            nothing = torch.zeros(count)
            yield batch(count, first), Target(nothing, nothing, nothing.long())


class Album(NullTracker):
    """Keeps figures."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def log_figure(self, figure: Figure, path: str) -> None:
        self.figures[path] = figure


def test_a_row_is_explained_by_the_mean_over_heads() -> None:
    rows = batch(5)
    maps = attention(Given().eval(), rows)
    assert maps.shape == (5, LAYERS, FIELDS, FIELDS)
    for b in range(5):
        logits = rows.ids[b].numpy().reshape(LAYERS, HEADS, FIELDS, FIELDS).astype(float)
        for layer in range(LAYERS):
            expected = np.zeros((FIELDS, FIELDS))
            for head in range(HEADS):
                for m in range(FIELDS):
                    weights = np.exp(logits[layer, head, m])
                    expected[m] += weights / weights.sum() / HEADS
            np.testing.assert_allclose(maps[b, layer].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(maps.sum(-1).numpy(), 1.0, rtol=1e-6)


def test_explaining_in_training_mode_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="evaluation mode"):
        attention(Given().train(), batch(2))


def test_the_mean_does_not_depend_on_batches() -> None:
    maps = attention(Given().eval(), batch(50))
    whole, parts = AttentionMean(), AttentionMean()
    whole.add(maps)
    for part in maps.split(7):
        parts.add(part)
    assert parts.rows == 50
    np.testing.assert_allclose(whole.mean(), maps.double().mean(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(parts.mean(), whole.mean(), rtol=1e-12)


def test_pairs_count_both_directions() -> None:
    mean = np.array([[0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.7, 0.2, 0.1]])
    first, second, third = top_pairs(mean, ["a", "b", "c"])
    assert first["fields"] == ["a", "c"]
    assert (first["forth"], first["back"]) == (0.3, 0.7)
    assert first["weight"] == pytest.approx(1.0)
    assert first["lift"] == pytest.approx(1.5)  # uniform would be 2 / 3
    assert (second["fields"], third["fields"]) == (["a", "b"], ["b", "c"])  # .6 and .5
    assert [pair["fields"] for pair in top_pairs(mean, ["a", "b", "c"], 1)] == [["a", "c"]]
    uniform = top_pairs(np.full((3, 3), 1 / 3), ["a", "b", "c"])
    assert [pair["lift"] for pair in uniform] == pytest.approx([1.0] * 3)
    assert [pair["fields"] for pair in uniform] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert top_pairs(np.ones((1, 1)), ["alone"]) == []


@pytest.mark.parametrize(("layers", "panels"), [(1, 1), (2, 3), (4, 5)])
def test_the_picture_has_the_mean_and_every_layer(layers: int, panels: int) -> None:
    maps = np.random.default_rng(0).dirichlet(np.ones(4), (layers, 4))
    figure = attention_figure(maps, ["site", "item", "user", "price"], "test")
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == panels
    data = [axes.images[0].get_array().data / 4 for axes in shown]  # drawn as times uniform
    expected = [*([maps.mean(0)] if layers > 1 else []), *maps]
    most = max(2.0, maps.max() * 4)
    for panel, values in zip(data, expected, strict=True):
        np.testing.assert_allclose(panel, np.maximum(values, 1 / most / 4))
    names = [label.get_text() for label in shown[0].get_yticklabels()]
    assert names == ["site", "item", "user", "price"]
    assert [label.get_text() for label in shown[-1].get_xticklabels()] == names


def test_a_run_logs_one_picture_of_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanations, "ROWS_OF_A_RUN", 1000)
    album, rows, model = Album(), Encoded(5000), Given().train()
    log_attention(album, model, rows, list("abcd"), title="run", seed=3)
    assert list(album.figures) == ["plots/attention.png"]
    assert rows.asked == {"shuffle": True, "seed": 3}
    assert rows.read == 1024  # two batches of 512
    assert "run: 1,024 rows" in album.figures["plots/attention.png"].get_suptitle()
    assert not model.training


def test_models_without_attention_log_nothing() -> None:
    album = Album()
    log_attention(album, Plain(), Encoded(10), list("abcd"), title="run", seed=0)
    assert album.figures == {}
    assert isinstance(Given(), Attentive)
    assert not isinstance(Plain(), Attentive)
