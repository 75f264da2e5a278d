"""Mixed dimensions: golden sizes, order, rank, projection after pooling, monotone budgets."""

from __future__ import annotations

from math import ceil, log2

import criteo
import numpy as np
import pytest
import torch
from embedding_cases import build, config, encoded
from pydantic import ValidationError

from recsys.embeddings.mixed_dim import MixedDim
from recsys.settings import TrainConfig
from recsys.training.optimizers import build_optimizers
from recsys.types import Batch, FieldSpec, InputError

SIZES = (10, 1000, 100_000)


def fields(sizes: tuple[int, ...] = SIZES) -> tuple[FieldSpec, ...]:
    return tuple(FieldSpec(f"n{n}", "categorical", num_ids=n) for n in sizes)


def plan(tree: dict[str, object], sizes: tuple[int, ...] = SIZES) -> MixedDim:
    tree = {"method": "mixed_dim", "embedding_dim": 64} | tree
    return MixedDim(config(tree), fields(sizes), {"main": 64})


def params(tree: dict[str, object]) -> int:
    tree = {"method": "mixed_dim", "embedding_dim": 64} | tree
    _, layers = build(tree, fields(), {"main": 64})
    return layers["main"].memory().trainable_params


def test_golden_count() -> None:
    assert plan({"alpha": 0.3}).widths == [64, 16, 4]
    assert params({"alpha": 0.3}) == 640 + 16_000 + 400_000 + (16 + 4) * 64 == 417_920
    assert plan({"alpha": 0.3, "power_of_two": False}).widths == [64, 16, 4]  # 64, 16.08, 4.04


def test_alpha_zero_keeps_everything_and_projects_nothing() -> None:
    _, layers = build(
        {"method": "mixed_dim", "embedding_dim": 64, "alpha": 0}, fields(), {"main": 64}
    )
    assert [store.weight.shape for store in layers["main"].tables] == [(101_010, 64)]
    assert list(layers["main"].combine.parameters()) == []


def test_alpha_one_gives_every_block_the_same_floats() -> None:
    sizes = (100, 200, 400, 1600)
    widths = plan({"alpha": 1, "power_of_two": False}, sizes).widths
    assert [n * d for n, d in zip(sizes, widths, strict=True)] == [6400] * 4


def test_order_of_fields_does_not_matter() -> None:
    shuffled = (1000, 100_000, 10)
    assert plan({}, shuffled).widths == [16, 4, 64]


def test_widths_round_down_to_the_embedding_dim() -> None:
    tree = {"method": "mixed_dim", "embedding_dim": 12, "alpha": 0.05}
    widths = MixedDim(config(tree), fields(), {"main": 12}).widths
    assert widths[0] == 12
    assert all(log2(width).is_integer() and width <= 12 for width in widths[1:])


def test_a_projection_that_costs_more_than_it_saves_is_not_made() -> None:
    # 6 ids would get width 16: 16 x (6 + 64) = 1120 floats, where 64 x 6 = 384 are exact
    assert plan({"alpha": 1}, (2, 6, 200)).widths == [64, 64, 1]


def test_rank_is_the_width() -> None:
    tree = {"method": "mixed_dim", "embedding_dim": 16, "alpha": 0.3}
    _, layers = build(tree, fields((10, 100, 900)), {"main": 16})
    widths = [8 if n == 100 else 4 if n == 900 else 16 for n in (10, 100, 900)]
    for f, (n, width) in enumerate(zip((10, 100, 900), widths, strict=True)):
        matrix = layers["main"].all_vectors(f).detach().double()
        assert int(torch.linalg.matrix_rank(matrix, rtol=1e-5)) == min(n, width)


def test_projecting_after_pooling_changes_nothing() -> None:
    fields = (
        FieldSpec("small", "categorical", num_ids=10),
        FieldSpec("bag", "bag", num_ids=5000, pooling="sum", max_length=7),
    )
    id_map, layers = build({"method": "mixed_dim"}, fields)
    ids = torch.randint(0, 5000, (3, 7))
    lengths = torch.full((3, 1), 7)
    rows = id_map(Batch(torch.zeros(3, 1).long(), torch.zeros(3, 0), [ids], lengths))
    assert layers["main"].tables[1].weight.size(1) < 16
    single = layers["main"].all_vectors(1)[ids].sum(1)
    torch.testing.assert_close(layers["main"](rows)[:, 1], single, rtol=0, atol=1e-6)


@pytest.mark.parametrize("power_of_two", [True, False])
def test_cost_falls_with_alpha(power_of_two: bool) -> None:
    costs = [
        plan({"alpha": alpha, "power_of_two": power_of_two})._cost(alpha)
        for alpha in np.linspace(0, 1, 21)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 5 * costs[-1]


@pytest.mark.parametrize("share", [0.5, 0.2, 0.1, 0.05])
def test_a_budget_takes_the_smallest_alpha_that_fits(share: float) -> None:
    solved = plan({"budget": share, "power_of_two": False})
    limit = share * 4 * 64 * sum(SIZES) + 64 * len(SIZES)
    assert solved._cost(solved.alpha) <= limit
    assert solved._cost(solved.alpha - 1e-9) > limit


def test_sharing_fields_share_rows_and_projection() -> None:
    id_map, layers = build("mixed_dim")
    shapes = [tuple(p.shape) for p in layers["main"].combine.parameters()]
    # 16 (10 / n)^.3 for shop 300, item 2000, tags 50: 5.8, 3.3, 9.9 -> 8, 4, 8; history adds none
    assert shapes == [(2, 8, 16), (1, 4, 16)]
    batch = encoded(4)
    assert torch.equal(id_map.list_rows(0, batch.ids[:, 2]), id_map.field_rows(2, batch.ids[:, 2]))


def test_popularity_blocks() -> None:
    counts = np.array([400] * 10 + [10] * 90 + [1] * 900)  # sums 4000, 900, 900
    field = (FieldSpec("item", "categorical", num_ids=1000, counts=counts),)
    tree = {"method": "mixed_dim", "alpha": 0.5, "blocks": {"item": {"cuts": [0.6896, 0.8447]}}}
    id_map, layers = build(tree, field, {"main": 64})
    tables = layers["main"].tables
    # widths 64 (p_i / p_max)^.5: blocks of 10, 90 and 900 ids have p 400 : 10 : 1
    assert [tuple(s.weight.shape) for s in tables] == [(11, 64), (91, 8), (901, 4)]
    assert id_map.field_rows(0, torch.tensor([0, 9, 10, 99, 100, 999])).tolist() == [
        [0, 90, 900],
        [9, 90, 900],
        [10, 0, 900],
        [10, 89, 900],
        [10, 90, 0],
        [10, 90, 899],
    ]
    by_ids = {"item": {"by": "ids", "cuts": [0.01, 0.1]}}
    assert build(tree | {"blocks": by_ids}, field, {"main": 64})[0].fingerprint == (
        id_map.fingerprint
    )
    assert all((store.weight[-1] == 0).all() for store in tables)
    layers["main"].all_vectors(0).sum().backward()
    for store in tables:
        assert (store.weight.grad.to_dense()[-1] == 0).all()  # a miss trains nothing
        assert store.weight.grad.to_dense()[:-1].abs().sum() > 0


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="alpha or budget, not both"):
        config({"method": "mixed_dim", "alpha": 0.1, "budget": 0.5})
    with pytest.raises(ValidationError, match="fixed needs init: orthonormal"):
        config({"method": "mixed_dim", "projections": "fixed"})
    with pytest.raises(ValidationError, match="cuts must rise"):
        config({"method": "mixed_dim", "blocks": {"a": {"cuts": [0.5, 0.1]}}})
    with pytest.raises(InputError, match=r"blocks\.gone: no feature"):
        build({"method": "mixed_dim", "blocks": {"gone": {"cuts": [0.5]}}}, fields())
    with pytest.raises(InputError, match="no training counts"):
        build({"method": "mixed_dim", "blocks": {"n10": {"cuts": [0.5]}}}, fields())
    with pytest.raises(InputError, match="alpha 1"):
        build({"method": "mixed_dim", "budget": 0.001}, fields(), {"main": 64})


def test_l2_of_all_rows_is_that_of_the_vectors() -> None:
    """``penalty`` equals half the sum of squares of every vector that the model can see."""
    train = {"embedding_l2": {"value": 0.3}, "embedding_gradient": "dense"}
    tree = {"method": "mixed_dim", "embedding_dim": 16, "alpha": 0.4}
    layer = build(tree, fields((10, 400, 3000)), **train)[1]["main"]
    vectors = torch.cat([layer.all_vectors(f) for f in range(3)])
    expected = 0.3 * vectors.square().sum() / 2
    torch.testing.assert_close(layer.penalty(), expected)
    tables = [store.weight for store in layer.tables]
    assert {id(p) for p in layer.penalised()} == {
        id(p) for p in (*tables, *layer.combine.parameters())
    }
    optimizers = build_optimizers(layer, TrainConfig.model_validate(train))
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    before = [p.detach().clone() for p in layer.penalised()]
    optimizers.step()  # no gradient: the optimiser adds no L2 of its own
    assert all(torch.equal(a, b) for a, b in zip(before, layer.penalised(), strict=True))


def test_orthonormal_start_is_that_of_a_full_table() -> None:
    """Vectors are rows times an isometry, and have the variance init_std^2 whatever their width."""
    sizes = (10, 400, 3000)
    tree = {"method": "mixed_dim", "embedding_dim": 16, "alpha": 0.4, "init": "orthonormal"}
    layer = build(tree, fields(sizes))[1]["main"]
    assert len({store.weight.size(1) for store in layer.tables}) > 1
    for f in range(len(sizes)):
        vectors = layer.all_vectors(f).detach()
        assert float(vectors.square().mean()) == pytest.approx(1e-8, rel=0.2)
    for weight in layer.combine.parameters():
        for block in weight:
            torch.testing.assert_close(block @ block.T, torch.eye(len(block)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["mixed_dim", "low_rank"])
def test_fixed_projections_stay_and_rows_learn(method: str) -> None:
    tree = {"method": method, "embedding_dim": 16, "init": "orthonormal", "projections": "fixed"}
    sizes, train = (10, 400, 3000), TrainConfig(learning_rate=0.1)
    layer = build(tree, fields(sizes))[1]["main"]
    trained = build({**tree, "projections": "trained"}, fields(sizes))[1]["main"]
    ours, theirs = layer.memory(), trained.memory()
    assert ours.stored_bytes == theirs.stored_bytes
    assert ours.trainable_params < theirs.trainable_params
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    optimizers = build_optimizers(layer, train)
    (layer.all_vectors(2) - 1).square().mean().backward()
    optimizers.step()
    moved = {name for name, old in before.items() if not torch.equal(layer.state_dict()[name], old)}
    assert moved == {name for name in before if name.startswith("stores")} - {"stores.0.weight"}
    copy = build(tree, fields(sizes), seed=1)[1]["main"]
    copy.load_state_dict(layer.state_dict())
    torch.testing.assert_close(copy.all_vectors(2), layer.all_vectors(2), rtol=0, atol=0)


def criteo_plan(**keys: object) -> MixedDim:
    tree = {"method": "mixed_dim", "embedding_dim": criteo.WIDTH, **keys}
    return MixedDim(config(tree), criteo.FIELDS, {"main": criteo.WIDTH})


@pytest.mark.parametrize(
    ("share", "min_dim", "alpha"),
    [
        (0.5, 1, 0.039),
        (0.25, 1, 0.124),
        (0.1, 1, 0.160),
        (0.0625, 1, 0.284),
        (0.5, 4, 0.039),
        (0.25, 4, 0.126),
    ],
)
def test_golden_alphas_of_criteo(share: float, min_dim: int, alpha: float) -> None:
    """The least alpha on a grid of .001, projections counted; published budgets may be exceeded by
    a thousandth."""
    assert sum(criteo.SIZES) == 33_762_577
    budget = 1.001 * share
    solved = criteo_plan(budget=budget, min_dim=min_dim)
    assert ceil(1000 * solved.alpha) / 1000 == alpha
    assert solved.stored_bytes() <= budget * criteo.TABLE_BYTES + 64 * len(criteo.SIZES)


@pytest.mark.parametrize(("share", "min_dim"), [(0.01, 1), (0.001, 1), (0.1, 4), (0.0625, 4)])
def test_infeasible_shares_of_criteo(share: float, min_dim: int) -> None:
    with pytest.raises(InputError, match="needs at least"):
        criteo_plan(budget=share, min_dim=min_dim)


def blocked(**keys: object) -> MixedDim:
    counts = np.array([400] * 10 + [10] * 90 + [1] * 900)
    field = FieldSpec("item", "categorical", num_ids=1000, counts=counts)
    tree = {"method": "mixed_dim", "embedding_dim": 64, "blocks": {"item": {"cuts": [0.69, 0.84]}}}
    return MixedDim(config(tree | keys), (field,), {"main": 64})


def test_a_budget_over_popularity_blocks() -> None:
    """Popular blocks stay wider than rare ones, and the bytes of the built tables fit."""
    for share in (0.3, 0.1, 0.05):
        solved = blocked(budget=share, power_of_two=False)
        assert solved.widths == sorted(solved.widths, reverse=True)
        assert solved.widths[0] == 64
        limit = share * 4 * 64 * 1000 + 64
        assert solved.stored_bytes() <= limit + 64 * 2  # two more slots, counted beside
        shapes = [(spec.rows, spec.width) for spec in solved.tables(64)]
        words = sum(rows * width for rows, width in shapes)
        words += sum(width * 64 for _, width in shapes if width < 64)
        assert 4 * words < solved.stored_bytes() <= 4 * words + 64 * 3


def test_rank_of_popularity_blocks() -> None:
    solved = blocked(alpha=0.5)
    assert solved.widths == [64, 8, 4]  # 64 (p_i / p_max)^.5 of 400 : 10 : 1, to powers of two
    counts = np.array([400] * 10 + [10] * 90 + [1] * 900)
    field = (FieldSpec("item", "categorical", num_ids=1000, counts=counts),)
    tree = {"method": "mixed_dim", "alpha": 0.5, "blocks": {"item": {"cuts": [0.69, 0.84]}}}
    vectors = build(tree, field, {"main": 64})[1]["main"].all_vectors(0).detach().double()
    for block, rank in zip(solved.blocks, (11, 8, 4), strict=True):
        matrix = vectors[block.low : block.high]
        assert int(torch.linalg.matrix_rank(matrix, rtol=1e-5)) == rank
