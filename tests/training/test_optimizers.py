"""Optimisers against torch's own, sparse against dense, and exact continuation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer, build_embeddings
from recsys.embeddings.full import FullConfig
from recsys.settings import TrainConfig
from recsys.training.optimizer_parts import DenseGroup
from recsys.training.optimizers import Optimizers, build_optimizers
from recsys.training.sparse_optimizers import coalesce
from recsys.types import Batch, FieldSpec

IDS = 30
FIELDS = (
    FieldSpec("a", "categorical", num_ids=IDS),
    FieldSpec("b", "categorical", num_ids=IDS, shares="a"),
    FieldSpec("x", "numeric"),
    FieldSpec("h", "sequence", num_ids=IDS, shares="a", pooling="sum", max_length=3),
)


class Small(nn.Module):
    """An embedding layer and a linear reader."""

    layer: EmbeddingLayer

    def __init__(self, train: TrainConfig) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = FullConfig(method="full", embedding_dim=8, init_std=0.1)
        self.layer = build_embeddings(config, FIELDS, {"main": 8}, train=train)[1]["main"]
        self.head = nn.Linear(4 * 8, 1)

    def forward(self, batch: Batch) -> Tensor:
        return self.head(self.layer(batch).flatten(1)).squeeze(1)


def batch(seed: int, high: int = 12) -> Batch:
    """Rows below ``high``: many duplicates, and rows that are never touched."""
    made = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, high, (16, 2), generator=made)
    history = torch.randint(0, high, (16, 3, 1), generator=made)
    lengths = torch.randint(0, 4, (16, 1), generator=made)
    return Batch(ids, torch.randn(16, 1, generator=made), [history], lengths)


def trained(steps: int = 4, clip: float | None = None, **keys: Any) -> tuple[Small, Optimizers]:
    train = TrainConfig(learning_rate=0.05, **keys)
    model = Small(train)
    optimizers = build_optimizers(model, train)
    run(model, optimizers, range(steps), clip)
    return model, optimizers


def run(model: Small, optimizers: Optimizers, seeds: range, clip: float | None = None) -> None:
    for seed in seeds:
        optimizers.set_lr_scale(1.0 / (1 + seed))
        optimizers.zero_grad()
        model(batch(seed)).square().sum().backward()
        if clip is not None:
            optimizers.clip(clip)
        optimizers.step()


def assert_equal_models(a: nn.Module, b: nn.Module, tolerance: float = 1e-6) -> None:
    for (name, x), (_, y) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("kind", "reference"),
    [("adam", torch.optim.Adam), ("adagrad", torch.optim.Adagrad), ("sgd", torch.optim.SGD)],
)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_dense_equals_torch(kind: str, reference: Any, decay: float) -> None:
    l2 = {"value": decay, "mode": "all_rows"}
    ours, _ = trained(
        optimizer=kind, embedding_gradient="dense", weight_decay=decay, embedding_l2=l2
    )
    model = Small(TrainConfig(embedding_gradient="dense"))
    optimizer = reference(model.parameters(), lr=0.05, weight_decay=decay)
    for seed in range(4):
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + seed)
        optimizer.zero_grad()
        model(batch(seed)).square().sum().backward()
        optimizer.step()
    assert_equal_models(ours, model)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("l2", [{"value": 0.0}, {"value": 0.1, "mode": "touched_rows"}])
def test_sparse_equals_dense(kind: str, l2: dict[str, Any]) -> None:
    keys = {"embedding_optimizer": kind, "embedding_l2": l2}
    sparse, _ = trained(embedding_gradient="sparse", **keys)
    dense, _ = trained(embedding_gradient="dense", **keys)
    assert sparse.layer.tables[0].sparse
    assert not dense.layer.tables[0].sparse
    assert_equal_models(sparse, dense)


def test_sparse_adam_equals_dense_adam_on_rows_touched_at_every_step() -> None:
    rows = torch.arange(IDS).repeat(2)  # duplicates; all rows, so that no moment would decay
    tables = []
    for gradient in ("sparse", "dense"):
        train = TrainConfig(learning_rate=0.05, embedding_gradient=gradient)
        model = Small(train)
        optimizers = build_optimizers(model, train)
        made = torch.Generator().manual_seed(2)
        for _ in range(5):
            optimizers.zero_grad()
            goal = torch.randn(2 * IDS, 8, generator=made)
            (model.layer.tables[0](rows) - goal).square().sum().backward()
            optimizers.step()
        tables.append(model.layer.tables[0].weight)
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=1e-6)


def test_sparse_adam_freezes_untouched_rows() -> None:
    """Row 1 is touched at step 1 alone, row 2 at steps 1 and 3, which is global step 3."""
    train = TrainConfig(learning_rate=0.1, embedding_gradient="sparse")
    model = Small(train)
    optimizers = build_optimizers(model, train)
    table = model.layer.tables[0].weight
    start = table.detach().clone()
    for rows in ([1, 2], [3], [2]):
        optimizers.zero_grad()
        model.layer.tables[0](torch.tensor(rows)).sum().backward()  # gradients of 1
        optimizers.step()
    torch.testing.assert_close(table[1], start[1] - 0.1)  # Adam's first step is the rate
    first, second = 0.1 + 0.9 * 0.1, 0.001 + 0.999 * 0.001  # moments of row 2 after two touches
    step = 0.1 * (first / (1 - 0.9**3)) / (second / (1 - 0.999**3)) ** 0.5
    torch.testing.assert_close(table[2], start[2] - 0.1 - step)
    assert torch.equal(table[4:], start[4:])


def test_rowwise_adagrad_by_hand() -> None:
    train = TrainConfig(learning_rate=0.5, embedding_optimizer="rowwise_adagrad")
    model = Small(train)
    optimizers = build_optimizers(model, train)
    table = model.layer.tables[0].weight
    assert model.layer.tables[0].sparse  # auto: only Adam keeps small tables dense
    before = table.detach().clone()
    goal = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    (model.layer.tables[0](torch.tensor([4, 7, 4])) * goal).sum().backward()
    optimizers.step()
    for row, grad in ((4, goal[0] + goal[2]), (7, goal[1])):
        expected = before[row] - 0.5 * grad / grad.square().mean().sqrt()
        torch.testing.assert_close(table[row], expected)
    assert torch.equal(table[5], before[5])


@pytest.mark.parametrize("gradient", ["sparse", "dense"])
def test_decoupled_decay(gradient: str) -> None:
    l2 = {"value": 0.5, "mode": "decoupled"}
    keys = {"embedding_gradient": gradient, "embedding_optimizer": "sgd"}
    plain, _ = trained(steps=1, **keys)
    decayed, _ = trained(steps=1, embedding_l2=l2, **keys)
    start = Small(TrainConfig()).layer.tables[0].weight
    shrink = torch.full((IDS, 1), 0.05 * 0.5)
    if gradient == "sparse":
        shrink[12:] = 0  # untouched rows are left alone
    expected = plain.layer.tables[0].weight - shrink * start
    touched = (plain.layer.tables[0].weight != start).any(1)
    expected = torch.where(touched.unsqueeze(1) | (gradient == "dense"), expected, start)
    torch.testing.assert_close(decayed.layer.tables[0].weight, expected)


def test_all_rows_l2_moves_every_row_under_auto() -> None:
    l2 = {"value": 0.1, "mode": "all_rows"}
    model, _ = trained(steps=1, embedding_optimizer="sgd", embedding_l2=l2)
    assert not model.layer.tables[0].sparse
    start = Small(TrainConfig()).layer.tables[0].weight
    torch.testing.assert_close(model.layer.tables[0].weight[12:], start[12:] * (1 - 0.05 * 0.1))


@pytest.mark.parametrize("gradient", ["sparse", "dense"])
def test_clip_is_the_global_norm(gradient: str) -> None:
    train = TrainConfig(embedding_gradient=gradient, embedding_optimizer="sgd", optimizer="sgd")
    model, reference = Small(train), Small(TrainConfig(embedding_gradient="dense"))
    optimizers = build_optimizers(model, train)
    for one in (model, reference):
        one(batch(0)).square().sum().mul(100).backward()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    norm = optimizers.clip(1.0)
    expected = float(nn.utils.clip_grad_norm_(reference.parameters(), 1.0))
    assert norm == pytest.approx(expected, rel=1e-5)
    assert norm > 10
    optimizers.step()
    moved = torch.cat(
        [(p.detach() - before[name]).flatten() for name, p in model.named_parameters()]
    )
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("kind", ["adam", "adagrad", "rowwise_adagrad", "sgd"])
@pytest.mark.parametrize("gradient", ["sparse", "dense"])
def test_a_stop_changes_nothing(kind: str, gradient: str) -> None:
    keys = {"embedding_optimizer": kind, "embedding_gradient": gradient}
    whole, _ = trained(steps=6, clip=5.0, **keys)
    half, optimizers = trained(steps=3, clip=5.0, **keys)
    tensors, plain = optimizers.state()
    kept = load(save({key: value.contiguous() for key, value in tensors.items()}))
    weights = {key: value.clone() for key, value in half.state_dict().items()}
    train = TrainConfig(learning_rate=0.05, **keys)
    again = Small(train)
    again.load_state_dict(weights)
    resumed = build_optimizers(again, train)
    resumed.load_state(kept, plain)
    run(again, resumed, range(3, 6), clip=5.0)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("gradient", ["sparse", "dense"])
def test_tables_have_their_own_rate(gradient: str) -> None:
    keys = {"embedding_gradient": gradient, "optimizer": "sgd", "embedding_learning_rate": 0.5}
    slow, _ = trained(steps=1, embedding_gradient=gradient, optimizer="sgd")
    fast, _ = trained(steps=1, **keys)
    start = Small(TrainConfig())
    for name, value in start.named_parameters():
        ratio = 10.0 if name.startswith("layer.") else 1.0
        moved = dict(slow.named_parameters())[name] - value
        torch.testing.assert_close(
            dict(fast.named_parameters())[name] - value, ratio * moved, rtol=1e-3, atol=1e-6
        )


@given(st.lists(st.integers(0, 9), max_size=40))
@settings(deadline=None, max_examples=50)
def test_coalesce_sums_duplicates_and_drops_zeros(rows: list[int]) -> None:
    index = torch.tensor([rows], dtype=torch.int64).view(1, -1)
    values = torch.randint(-2, 3, (len(rows), 2), generator=torch.Generator().manual_seed(0))
    grad = torch.sparse_coo_tensor(index, values.float(), (10, 2), check_invariants=True)
    found, summed = coalesce(grad)
    dense = torch.zeros(10, 2).index_add_(0, index[0], values.float())
    assert found.tolist() == dense.any(1).nonzero().flatten().tolist()
    assert torch.equal(summed, dense[found])


def test_a_nan_is_not_dropped() -> None:
    grad = torch.sparse_coo_tensor([[1]], [[torch.nan, 0.0]], (3, 2), check_invariants=True)
    assert coalesce(grad).rows.tolist() == [1]


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
@pytest.mark.parametrize("kind", ["adam", "adagrad", "rowwise_adagrad", "sgd"])
def test_state_of_chosen_entries_is_forgotten(kind: str, gradient: str) -> None:
    """One entry of row 1 and all of row 2; an accumulator of a whole row goes with whole rows."""
    train = TrainConfig(embedding_optimizer=kind, embedding_gradient=gradient, batch_size=16)  # type: ignore[arg-type]
    model = Small(train)
    optimizers = build_optimizers(model, train)
    for seed in range(2):
        optimizers.zero_grad()
        model(batch(seed)).square().sum().backward()
        optimizers.step()
    weight = model.layer.float_tables[0].weight
    assert isinstance(weight, nn.Parameter)
    before = {key: value.clone() for key, value in optimizers.state()[0].items()}
    chosen = torch.zeros_like(weight, dtype=torch.bool)
    chosen[1, 3] = chosen[2] = True
    optimizers.forget(weight, chosen)
    for key, value in optimizers.state()[0].items():
        expected = before[key]
        if "stores" in key and value.dim() == 2:
            assert expected[2].any()
            expected[2] = 0
            if kind != "rowwise_adagrad":
                assert expected[1, 3] != 0
                expected[1, 3] = 0
        assert torch.equal(value, expected), key


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_loaded_state_lies_where_its_parameter_does(optimizer: str) -> None:
    """The step count too: fused optimisers on another device keep it there."""
    here = nn.Parameter(torch.ones(3, 2))
    group = DenseGroup([("w", here)], optimizer=optimizer, learning_rate=0.1)  # type: ignore[arg-type]
    here.grad = torch.ones(3, 2)
    group.step()
    there = nn.Parameter(torch.ones(3, 2, device="meta"))
    saved = group.state()
    group.params = [there]
    group.load_state(saved)
    assert "w:step" in saved
    assert {v.device.type for v in group._optimizer.state[there].values()} == {"meta"}
