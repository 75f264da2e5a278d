"""Tensor trains: factors, cores against explicit products, sizes, gradients, L2, learning."""

from __future__ import annotations

import criteo
import numpy as np
import pytest
import torch
from computed_cases import fields, learned_auc, plan
from embedding_cases import DIMS, FIELDS, build, config, encoded
from pydantic import ValidationError

from recsys.embeddings.budget import budget_bytes
from recsys.embeddings.computed_store import ComputedStore
from recsys.embeddings.tensor_train import TensorTrain
from recsys.embeddings.tensor_train_store import (
    TensorTrainStore,
    split_rows,
    split_width,
    train_words,
)
from recsys.settings import TrainConfig
from recsys.types import FieldSpec, InputError


def table(store: TensorTrainStore) -> np.ndarray:
    """Every row by an explicit sum over both ranks."""
    r, (d1, d2, d3) = store.rank, split_width(store.width)
    one = store.first.detach().double().numpy().reshape(-1, d1, r)
    two = store.second.detach().double().numpy().reshape(-1, r, d2, r)
    three = store.third.detach().double().numpy().reshape(-1, r, d3)
    full = np.einsum("iar,jrbs,ksc->ijkabc", one, two, three)
    return full.reshape(-1, d1 * d2 * d3)


def test_golden_ranks() -> None:
    """The solver's table for the 26 Criteo fields, width 16."""
    for share, rank in ((0.5, 376), (0.1, 157), (0.01, 46), (0.001, 13)):
        assert plan("tensor_train", share).size == rank


def test_factors() -> None:
    assert split_width(16) == (2, 2, 4)
    assert split_width(10) == (1, 2, 5)
    assert split_width(7) == (1, 1, 7)
    assert split_width(1) == (1, 1, 1)
    assert split_width(64) == (4, 4, 4)
    for n in (1, 2, 7, 8, 9, 26, 27, 28, 999, 1000, 1001, *criteo.SIZES):
        n1, n2, n3 = split_rows(n)
        assert n1 * n2 * n3 >= n
        assert (n1 - 1) ** 3 < n <= n1**3
        assert n1 * n2 * (n3 - 1) < n  # no digit of the last core is out of use
    # 10,131,227: 217^3 = 10,218,313 is the first cube not below; sqrt(10131227 / 217) = 216.07
    assert split_rows(10_131_227) == (217, 217, 216)
    assert train_words(10_131_227, 16, 46) == 46 * 217 * 2 + 46**2 * 217 * 2 + 46 * 216 * 4


@pytest.mark.parametrize(("rows", "width", "rank"), [(1, 4, 2), (97, 16, 3), (500, 10, 7)])
def test_every_row_is_the_product_of_its_cores(rows: int, width: int, rank: int) -> None:
    torch.manual_seed(1)
    store = TensorTrainStore.fresh(rows=rows, width=width, rank=rank, std=0.5)
    assert sum(p.numel() for p in store.parameters()) == train_words(rows, width, rank)
    expected = table(store)[:rows]
    everything = store(torch.arange(rows)).detach().numpy()  # prefixes grouped
    np.testing.assert_allclose(everything, expected, atol=1e-5)
    one_by_one = torch.stack([store(torch.tensor(x)) for x in range(rows)]).detach().numpy()
    np.testing.assert_allclose(one_by_one, expected, atol=1e-5)
    repeats = torch.randint(0, rows, (4, 5))
    np.testing.assert_allclose(store(repeats).detach().numpy(), expected[repeats], atol=1e-5)


def test_gradients_are_those_of_the_explicit_product_in_parts_too() -> None:
    torch.manual_seed(2)
    store = TensorTrainStore.fresh(rows=700, width=8, rank=4, std=0.5)
    rows = torch.randint(0, 700, (900,))
    wanted = torch.randn(900, 8)

    def gradients() -> list[torch.Tensor]:
        store.zero_grad()
        (store(rows) * wanted).sum().backward()
        return [p.grad.clone() for p in store.parameters() if p.grad is not None]

    whole = gradients()
    store.part = 100  # several parts: computed again in the backward pass
    for one, other in zip(whole, gradients(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    (d1, d2, d3), r = split_width(8), 4
    one = store.first.view(-1, d1, r)
    two, three = store.second.view(-1, r, d2, r), store.third.view(-1, r, d3)
    full = torch.einsum("iar,jrbs,ksc->ijkabc", one, two, three).reshape(-1, 8)
    store.zero_grad()
    (full[rows] * wanted).sum().backward()
    for p, own in zip(store.parameters(), whole, strict=True):
        assert p.grad is not None
        assert float(own.abs().sum()) > 0
        torch.testing.assert_close(p.grad, own, atol=1e-4, rtol=1e-4)


def test_one_id_moves_one_slice_of_each_core() -> None:
    store = TensorTrainStore.fresh(rows=1000, width=8, rank=3, std=0.5)  # 10 x 10 x 10
    store(torch.tensor([427])).sum().backward()
    for p, digit in zip(store.parameters(), (4, 2, 7), strict=True):
        assert p.grad is not None
        assert p.grad.abs().sum(1).nonzero().flatten().tolist() == [digit]


def test_no_rows_and_one_row() -> None:
    store = TensorTrainStore.fresh(rows=1000, width=8, rank=3, std=0.5)
    assert store(torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2, 8)
    one = store(torch.tensor([[999]], dtype=torch.int32))
    assert one.shape == (1, 1, 8)
    assert bool(torch.isfinite(one).all())


def test_vectors_start_as_those_of_a_full_table() -> None:
    torch.manual_seed(3)
    store = TensorTrainStore.fresh(rows=30_000, width=16, rank=24, std=1e-4)
    with torch.no_grad():
        vectors = store(torch.arange(30_000))
    # 31 slices of the first core, 64 of its numbers each: the sample deviates by a few percent
    assert float(vectors.std()) == pytest.approx(1e-4, rel=0.1)
    assert abs(float(vectors.mean())) < 1e-5


def test_l2_is_that_of_the_rows() -> None:
    torch.manual_seed(4)
    store = TensorTrainStore.fresh(rows=1000, width=8, rank=3, std=0.5, l2=0.1)  # a full grid
    expected = 0.1 * np.square(table(store)).sum() / 2
    penalty = store.penalty()
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(expected, rel=1e-4)
    penalty.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in store.parameters())
    l2 = {"value": 0.1, "mode": "all_rows"}
    _, layers = build({"method": "tensor_train", "rank": 6}, embedding_l2=l2)
    computed = [s for s in layers["main"].tables if isinstance(s, TensorTrainStore)]
    assert (len(layers["main"].tables), len(computed)) == (4, 3)
    cores = {id(p) for s in computed for p in s.parameters()}
    assert {id(p) for p in layers["main"].penalised()} == cores  # exact rows: the optimiser's
    assert float(layers["main"].penalty().detach()) == pytest.approx(
        sum(float(0.1 * s.half_square().detach()) for s in computed), rel=1e-5
    )


def test_small_fields_stay_exact_and_layers_have_ranks_of_their_own() -> None:
    made = config({"method": "tensor_train", "rank": 6})
    method = TensorTrain(made, FIELDS, DIMS)
    # item: 13 x 13 x 12 (2000 ids): 6*13*2 + 36*13*2 + 6*12*4 = 1380 < 32,000; shop: 7 x 7 x 7
    # (300): 6*7*2 + 36*7*2 + 6*7*4 = 756 < 4800; tags: 4 x 4 x 4 (50): 432 < 800; color stays
    assert [owner.name for owner in method.computed] == ["shop", "item", "tags"]
    assert method.solution() == {"rank": 6, "exact_features": 1}
    assert [method.slots(f) for f in range(7)] == [(0,), (1,), (2,), (), (), (2,), (3,)]
    for owner in method.computed:
        own = method._own_size(owner, 1)
        share = method.words(owner.num_ids, 16, 6) / 16
        assert method.words(owner.num_ids, 1, own) <= share or own == 1
        assert own == 6 or method.words(owner.num_ids, 1, own + 1) > share
    specs = method.tables(1), method.tables(16)
    assert [s.rows for s in specs[0]] == [s.rows for s in specs[1]] == [10, 300, 2000, 50]


def test_narrow_layer_equals_its_own_product() -> None:
    id_map, layers = build({"method": "tensor_train", "rank": 6})
    layer = layers["first_order"]
    store = layer.tables[2]
    assert isinstance(store, TensorTrainStore)
    assert store.width == 1
    batch = id_map(encoded(30))
    items = batch.ids[:, 2]
    np.testing.assert_allclose(
        layer(batch)[:, 2].detach().numpy(), table(store)[items.numpy()], atol=1e-9
    )


@pytest.mark.parametrize("budget", [0.5, 0.25, 0.1, "12KB"])
def test_budget_is_met(budget: str | float) -> None:
    id_map, layers = build({"method": "tensor_train", "budget": budget})
    allowed = budget_bytes(budget, FIELDS, DIMS)
    assert sum(layer.memory().stored_bytes for layer in layers.values()) <= allowed
    size = TensorTrain(config({"method": "tensor_train", "budget": budget}), FIELDS, DIMS).size
    _, larger = build({"method": "tensor_train", "rank": size + 1})
    assert sum(layer.memory().stored_bytes for layer in larger.values()) > 0.98 * allowed
    assert layers["main"](id_map(encoded(9))).shape == (9, 7, 16)


def test_whole_budget_is_the_full_table_and_too_little_is_refused() -> None:
    method = TensorTrain(config({"method": "tensor_train", "budget": "1GB"}), FIELDS, DIMS)
    assert method.computed == []
    with pytest.raises(InputError, match=r"tensor_train \(at rank 1\) needs at least"):
        build({"method": "tensor_train", "budget": 0.01})
    with pytest.raises(InputError, match=r"features\.a: embedding method tensor_train"):
        build({"method": "tensor_train"}, (FieldSpec("a", "categorical"),))
    with pytest.raises(ValidationError, match="rank or budget, not both"):
        config({"method": "tensor_train", "rank": 3, "budget": "1MB"})


def test_memory_counts_work_space() -> None:
    store = TensorTrainStore.fresh(rows=1000, width=8, rank=3, std=0.5)
    sizes = store.memory(TrainConfig(), 50)
    words = train_words(1000, 8, 3)
    assert (sizes.trainable_params, sizes.stored_bytes) == (words, 4 * words)
    assert sizes.training_bytes == 4 * 4 * words + 2 * 50 * store.row_floats * 4
    assert isinstance(store, ComputedStore)
    assert store.weight is None


def test_learns_what_a_full_table_learns() -> None:
    few = learned_auc({"method": "tensor_train", "rank": 3}, fields)
    more = learned_auc({"method": "tensor_train", "rank": 8}, fields)
    full = learned_auc({"method": "full"}, fields)
    assert 0.7 < few < more - 0.01
    assert full - 0.01 < more < full + 0.005
