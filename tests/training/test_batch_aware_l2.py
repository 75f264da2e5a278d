"""Mini-batch-aware L2 (DIN): only the rows of a batch, each by its training frequency."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from recsys.config import parse_config
from recsys.embeddings import EMBEDDINGS, EmbeddingLayer, build_embeddings
from recsys.embeddings.frequencies import row_frequencies
from recsys.selection.shared_blocks import BlockPlaces, SharingStore
from recsys.settings import TrainConfig
from recsys.training.optimizers import build_optimizers
from recsys.types import Batch, FieldSpec, InputError

COUNTS = np.array([0, 40, 20, 10, 5, 1])
VALUE = 0.3


class Reader(nn.Module):
    def __init__(self, layer: EmbeddingLayer) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(4, 1)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.layer(batch).sum(1)).squeeze(1)


def fields(counts: np.ndarray) -> tuple[FieldSpec, ...]:
    return (
        FieldSpec("item", "categorical", num_ids=len(counts), counts=counts),
        FieldSpec(
            "history",
            "sequence",
            num_ids=len(counts),
            counts=counts,
            shares="item",
            pooling="sum",
            max_length=3,
        ),
    )


def layer_of(
    train: TrainConfig, counts: np.ndarray = COUNTS, method: str = "full", **keys: Any
) -> EmbeddingLayer:
    torch.manual_seed(0)
    config = EMBEDDINGS[method].Config(method=method, embedding_dim=4, **keys)
    return build_embeddings(config, fields(counts), {"main": 4}, train=train)[1]["main"]


def moved(value: float, counts: np.ndarray = COUNTS) -> tuple[Tensor, Tensor]:
    """The table before, and how one SGD step of rate 1 on ids 1, 3 and history 4 moves it."""
    train = TrainConfig(
        optimizer="sgd",
        learning_rate=1.0,
        embedding_l2={"value": value, "mode": "batch_aware"},  # type: ignore[arg-type]
    )
    model = Reader(layer_of(train, counts, init_std=1.0))
    weight = model.layer.tables[0].weight
    before = weight.detach().clone()
    optimizers = build_optimizers(model, train)
    batch = Batch(
        torch.tensor([[1], [3]]),
        torch.zeros(2, 0),
        [torch.tensor([[[4], [5]], [[2], [2]]])],
        torch.tensor([[1], [0]]),
    )
    optimizers.zero_grad()
    model(batch).sum().backward()
    optimizers.step()
    return before, before - weight.detach()


def test_only_rows_of_the_batch_are_pulled_each_by_its_frequency() -> None:
    before, with_l2 = moved(VALUE)
    _, without = moved(0.0)
    pull = with_l2 - without
    for row in (0, 2, 5):  # not in the batch; 2 and 5 stand in padding
        assert not with_l2[row].any()
    for row in (1, 3, 4):
        expected = 2 * VALUE / COUNTS[row] * before[row]
        torch.testing.assert_close(pull[row], expected, atol=1e-6, rtol=1e-4)


def test_twice_the_frequency_is_half_the_pull() -> None:
    _, without = moved(0.0)
    once, twice = moved(VALUE)[1] - without, moved(VALUE, 2 * COUNTS)[1] - without
    touched = [1, 3, 4]
    torch.testing.assert_close(twice[touched], once[touched] / 2, atol=1e-6, rtol=1e-3)


def test_penalty_is_the_gradient_of_the_stated_loss() -> None:
    """The step is that of autograd on loss + sum over rows (value / n) ||w||^2."""
    before, step = moved(VALUE)
    _, plain = moved(0.0)
    weight = before.clone().requires_grad_()
    rows = torch.tensor([1, 3, 4])
    counts = torch.from_numpy(COUNTS)[rows].float()
    (VALUE / counts * weight[rows].square().sum(1)).sum().backward()
    torch.testing.assert_close(step, plain + weight.grad, atol=1e-6, rtol=1e-4)


def test_clipping_sees_the_penalty() -> None:
    train = TrainConfig(embedding_l2={"value": 50.0, "mode": "batch_aware"})  # type: ignore[arg-type]
    model = Reader(layer_of(train, init_std=1.0))
    optimizers = build_optimizers(model, train)
    batch = Batch(
        torch.tensor([[5]]),
        torch.zeros(1, 0),
        [torch.zeros(1, 0, 1, dtype=torch.int64)],
        torch.zeros(1, 1, dtype=torch.int64),
    )
    model(batch).sum().backward()
    row = model.layer.tables[0].weight[5].detach()
    gradients = [model.head.weight.grad, model.head.bias.grad, model.head.weight[0] + 100 * row]
    norm = torch.cat([g.detach().flatten() for g in gradients]).norm()
    assert optimizers.clip(1.0) == pytest.approx(norm.item(), rel=1e-4)


def test_frequencies_sum_over_ids_that_share_a_row() -> None:
    layer = layer_of(TrainConfig(), method="hash", rows=2, exact_below=0)
    ids = torch.arange(6).unsqueeze(1)
    rows = layer.row_map(ids, 0).squeeze(1)
    expected = [COUNTS[(rows == r).numpy()].sum() for r in range(2)]
    assert row_frequencies(layer)[0].tolist() == expected
    unified = layer_of(TrainConfig(), method="unified", rows=7, lookups=2, exact_below=0)
    assert row_frequencies(unified)[0].sum() == 2 * COUNTS.sum()
    assert row_frequencies(layer_of(TrainConfig()))[0].tolist() == COUNTS.tolist()


def test_blocks_that_share_rows_share_their_frequency() -> None:
    layer = layer_of(TrainConfig())
    places = BlockPlaces(rows=6, size=2)
    places.place.copy_(torch.tensor([0, 0, 2]))  # rows 2 and 3 are found at 0 and 1
    layer.stores[0] = SharingStore(store=layer.float_tables[0], places=places)
    a, b, c, d, e, f = COUNTS.tolist()
    assert row_frequencies(layer)[0].tolist() == [a + c, b + d, 0, 0, e, f]


INTEGERS = ("int8", "int16", "alpt")


@pytest.mark.parametrize("method", INTEGERS)
def test_tables_of_integers_have_none(method: str) -> None:
    with pytest.raises(InputError, match=f"method {method} keeps no rows of plain floats"):
        row_frequencies(layer_of(TrainConfig(), method=method))


@pytest.mark.parametrize("method", [name for name in EMBEDDINGS if name not in INTEGERS])
def test_every_table_method_has_frequencies(method: str) -> None:
    layer = layer_of(TrainConfig(), method=method)
    for store, counts in zip(layer.tables, row_frequencies(layer), strict=True):
        assert counts.shape == (store.weight.size(0),)


def test_auto_gradients_are_sparse() -> None:
    train = TrainConfig(embedding_l2={"value": 0.1, "mode": "batch_aware"})  # type: ignore[arg-type]
    assert all(store.sparse for store in layer_of(train).tables)


def test_memory_counts_the_frequencies() -> None:
    modes = ("batch_aware", "touched_rows")
    aware, touched = (
        TrainConfig(embedding_l2={"value": 0.1, "mode": mode}, embedding_gradient="sparse")  # type: ignore[arg-type]
        for mode in modes
    )
    more = layer_of(aware).memory().training_bytes - layer_of(touched).memory().training_bytes
    assert more == 4 * len(COUNTS)


def test_what_cannot_work_is_refused() -> None:
    l2 = {"value": 0.1, "mode": "batch_aware"}
    with pytest.raises(ValidationError, match="embedding_gradient sparse"):
        TrainConfig(embedding_l2=l2, embedding_gradient="dense")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="needs store torch"):
        TrainConfig(embedding_l2=l2, store="torchrec", optimizer="sgd")  # type: ignore[arg-type]
    tree: dict[str, Any] = {
        "name": "x",
        "data": {"train": "a.parquet", "label": "label"},
        "features": {"user": {"type": "categorical", "encoding": "hash"}},
        "embedding": {"method": "unified"},
        "model": {"name": "fm"},
        "train": {"embedding_l2": l2},
    }
    with pytest.raises(InputError, match=r"features\.user keeps open ids; set .*buckets"):
        parse_config(tree)
    tree["features"]["user"]["buckets"] = 10
    parse_config(tree)


def test_open_ids_without_a_config_are_refused() -> None:
    train = TrainConfig(embedding_l2={"value": 0.1, "mode": "batch_aware"})  # type: ignore[arg-type]
    config = EMBEDDINGS["unified"].Config(method="unified", embedding_dim=4, rows=9)
    open_field = FieldSpec("user", "categorical")
    layers = build_embeddings(config, [open_field], {"main": 4}, train=train)[1]
    with pytest.raises(InputError, match=r"features\.user: open ids are not counted"):
        build_optimizers(Reader(layers["main"]), train)
