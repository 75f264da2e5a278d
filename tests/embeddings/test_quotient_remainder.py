"""Quotient and remainder: golden sizes, distinct ids, exact integers, structure, L2, refusals."""

from __future__ import annotations

from typing import Any

import criteo
import numpy as np
import pytest
import torch
from embedding_cases import build, config, encoded
from pydantic import ValidationError
from torch import nn

from recsys.embeddings.quotient_remainder import QuotientRemainder
from recsys.embeddings.radix import spread_multiplier
from recsys.settings import TrainConfig
from recsys.training.optimizers import build_optimizers
from recsys.types import Batch, FieldSpec, InputError

OPERATIONS = ("product", "add", "concat")
METHOD = {"method": "quotient_remainder"}


def fields(*sizes: int) -> tuple[FieldSpec, ...]:
    return tuple(FieldSpec(f"n{i}", "categorical", num_ids=n) for i, n in enumerate(sizes))


def batch(ids: torch.Tensor) -> Batch:
    empty = torch.zeros(ids.size(0), 0)
    return Batch(ids, empty, [], empty.long())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_golden_size(operation: str) -> None:
    tree = {**METHOD, "m": 100, "operation": operation}
    _, layers = build(tree, fields(10_001), {"main": 16})
    width = 8 if operation == "concat" else 16
    assert layers["main"].tables[0].weight.shape == (201, width)


@pytest.mark.parametrize(("share", "m"), [(0.5, 3), (0.1, 11), (0.01, 101)])
def test_golden_radices_of_criteo(share: float, m: int) -> None:
    assert sum(criteo.SIZES) == 33_762_577
    solved = QuotientRemainder(config({**METHOD, "budget": share}), criteo.FIELDS, {"main": 16})
    assert solved.m == m
    rows = sum(min(n, -(-n // m) + m) for n in criteo.SIZES)
    assert solved.solution() == {"m": m, "rows": rows}
    assert [spec.rows for spec in solved.tables(16)] == [rows]
    fewer = sum(min(n, -(-n // (m - 1)) + m - 1) for n in criteo.SIZES)
    assert rows <= share * sum(criteo.SIZES) < fewer


def test_golden_floor_of_criteo() -> None:
    with pytest.raises(InputError, match=r"quotient_remainder needs at least 3\.00MB"):
        # 1.38e-3 of 2.16 GB, reached at m = 1557
        QuotientRemainder(config({**METHOD, "budget": 0.001}), criteo.FIELDS, {"main": 16})
    rows = sum(min(n, -(-n // 1557) + 1557) for n in criteo.SIZES)
    assert rows / sum(criteo.SIZES) == pytest.approx(1.38e-3, abs=5e-6)
    solved = QuotientRemainder(config({**METHOD, "budget": "3.00MB"}), criteo.FIELDS, {"m": 16})
    assert solved.solution()["rows"] >= rows
    assert solved.m <= 1557


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("partitions", "m"), [(2, 100), (2, 7), (2, 3000), (4, 10)])
def test_all_ids_are_distinct(operation: str, partitions: int, m: int) -> None:
    tree = {**METHOD, "m": m, "operation": operation, "partitions": partitions, "init_std": 0.1}
    id_map, layers = build(tree, fields(10_000), {"main": 16})
    assert len(torch.unique(id_map.field_rows(0, torch.arange(10_000)), dim=0)) == 10_000
    vectors = layers["main"].all_vectors(0).detach()
    assert len(torch.unique(vectors, dim=0)) == 10_000


@pytest.mark.parametrize("operation", OPERATIONS)
def test_three_radices(operation: str) -> None:
    tree = {**METHOD, "m": 22, "operation": operation, "partitions": 3, "init_std": 0.1}
    tree["embedding_dim"] = 12
    id_map, layers = build(tree, fields(10_000), {"main": 12})
    rows = id_map.field_rows(0, torch.arange(10_000))
    assert layers["main"].tables[0].weight.size(0) == 22 + 22 + 21  # ceil(10,000 / 484) = 21
    assert rows.min(0).values.tolist() == [0, 22, 44]
    assert rows.max(0).values.tolist() == [21, 43, 64]
    assert len(torch.unique(rows, dim=0)) == 10_000
    assert len(torch.unique(layers["main"].all_vectors(0).detach(), dim=0)) == 10_000


def test_fields_take_no_more_digits_than_they_need() -> None:
    plan = QuotientRemainder(
        config({**METHOD, "m": 10, "partitions": 3}), fields(101, 100, 12, 5), {"main": 16}
    )
    # 10 + 10 + 2; 10 + 10; exact, as 10 + 2 rows are no fewer; exact
    assert [len(plan.slots(f)) for f in range(4)] == [3, 2, 1, 1]
    assert plan.solution()["rows"] == 22 + 20 + 12 + 5


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("partitions", [2, 4])
@pytest.mark.parametrize("share", [0.4, 0.1, 0.02])
def test_the_smallest_radix_that_fits(operation: str, partitions: int, share: float) -> None:
    """The solver's arithmetic against plans with given radices."""
    tree = {**METHOD, "operation": operation, "partitions": partitions}
    sizes = fields(60_000, 5000, 300, 40, 3)
    solved = QuotientRemainder(config({**tree, "budget": share}), sizes, {"main": 16})

    def stored(m: int) -> int:
        plan = QuotientRemainder(config({**tree, "m": m}), sizes, {"main": 16})
        return sum(4 * spec.rows * spec.width for spec in plan.tables(16))

    room = 64 * 5 * 2 * partitions  # for index structures
    limit = share * 4 * 16 * 65_343 + 64 * 5
    assert stored(solved.m) + room <= limit
    assert all(stored(m) + room > limit for m in range(2, solved.m))


def test_a_plain_hash_of_the_same_size_tells_few_apart() -> None:
    _, layers = build({"method": "hash", "rows": 200}, fields(10_000), {"main": 16})
    assert len(torch.unique(layers["main"].all_vectors(0), dim=0)) <= 200


@pytest.mark.parametrize("method_tree", [{"m": 100}, {"m": 2, "exact_below": 20_000}])
@pytest.mark.parametrize("wrong", [10_000, 2**40, -1])
def test_ids_out_of_range_raise(method_tree: dict[str, Any], wrong: int) -> None:
    id_map, layers = build({**METHOD, **method_tree}, fields(10_000, 10_000), {"main": 16})
    rows = id_map(batch(torch.tensor([[9_999, 9_999], [9_999, wrong]])))
    assert (
        layers["main"](Batch(rows.ids[:1], rows.floats[:1], [], rows.lengths[:1])).isfinite().all()
    )
    with pytest.raises(IndexError):
        layers["main"](rows)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_id_moves_one_row_per_digit(operation: str) -> None:
    tree = {**METHOD, "m": 100, "operation": operation, "init_std": 0.1}
    id_map, layers = build(tree, fields(10_000), {"main": 16}, embedding_gradient="dense")
    rows = id_map(batch(torch.tensor([[1234]])))
    layers["main"](rows).sum().backward()
    gradient = layers["main"].tables[0].weight.grad
    assert gradient is not None
    moved = gradient.any(1).nonzero().flatten()
    assert moved.tolist() == sorted(rows.ids[0].tolist())
    assert (moved < 100).tolist() == [True, False]


def test_equal_remainders_share_one_row() -> None:
    id_map, _ = build({**METHOD, "m": 100}, fields(10_000), {"main": 16})
    inverse = pow(spread_multiplier(10_000), -1, 10_000)
    a, b = (inverse * x % 10_000 for x in (4217, 917))  # after the permutation: remainder 17
    assert id_map.field_rows(0, torch.tensor([a, b])).tolist() == [[17, 142], [17, 109]]


def test_popular_ids_spread_over_the_quotients() -> None:
    """The 100 most popular ids would all have quotient 0 without the permutation."""
    id_map, _ = build({**METHOD, "m": 100}, fields(10_000), {"main": 16})
    rows = id_map.field_rows(0, torch.arange(100))
    assert torch.bincount(rows[:, 1] - 100).max() <= 2
    assert torch.bincount(rows[:, 0]).max() <= 6


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_bags_multiply_before_they_are_pooled(operation: str, pooling: Any) -> None:
    bag = (FieldSpec("bag", "bag", num_ids=5000, pooling=pooling, max_length=3),)
    tree = {**METHOD, "m": 50, "operation": operation, "init_std": 0.5}
    id_map, layers = build(tree, bag, {"main": 16})
    ids = torch.tensor([[17, 4000, 9], [3, 3, 8]])
    lengths = torch.tensor([[2], [3]])
    rows = id_map(Batch(torch.zeros(2, 0).long(), torch.zeros(2, 0), [ids], lengths))
    out = layers["main"](rows)[:, 0]
    every = layers["main"].all_vectors(0)
    for b, valid in enumerate(([17, 4000], [3, 3, 8])):
        single = every[valid].sum(0) / (len(valid) if pooling == "mean" else 1)
        torch.testing.assert_close(out[b], single, rtol=0, atol=1e-5)


def test_products_by_hand_with_an_exact_field_between() -> None:
    tree = {**METHOD, "m": 10, "partitions": 3, "init_std": 0.5}
    id_map, layers = build(tree, fields(900, 7, 2000), {"main": 16})
    ids = torch.tensor([[5, 6, 1999], [899, 0, 3]])
    out, table = layers["main"](id_map(batch(ids))), layers["main"].tables[0].weight
    for b in range(2):
        for f in range(3):
            rows = id_map.field_rows(f, ids[b : b + 1, f])[0].tolist()
            assert len(rows) == (1 if f == 1 else 3)
            expected = np.prod(table[rows].detach().double().numpy(), axis=0)
            np.testing.assert_allclose(out[b, f].detach().numpy(), expected, rtol=1e-5)


def test_a_field_that_digits_would_enlarge_stays_exact() -> None:
    plan = QuotientRemainder(config({**METHOD, "m": 10}), fields(14, 15, 200), {"main": 16})
    # ceil(14 / 10) + 10 = 12 < 14;  12 < 15; a field of 12 ids would need as many rows
    assert [len(plan.slots(f)) for f in range(3)] == [2, 2, 2]
    plan = QuotientRemainder(config({**METHOD, "m": 10}), fields(12, 11, 200), {"main": 16})
    assert [len(plan.slots(f)) for f in range(3)] == [1, 1, 2]
    kept = QuotientRemainder(
        config({**METHOD, "m": 10, "exact_below": 200}), fields(12, 200, 201), {"main": 16}
    )
    assert [len(kept.slots(f)) for f in range(3)] == [1, 1, 2]


def test_vectors_start_like_a_hash_on_the_quotient() -> None:
    std = 0.02
    _, layers = build({**METHOD, "m": 300, "init_std": std}, fields(100_000), {"main": 16})
    table = layers["main"].tables[0].weight.detach()
    remainder, quotient = table[:300], table[300:]
    assert float(remainder.mean()) == pytest.approx(1, abs=0.01)
    assert float(remainder.std()) == pytest.approx(0.1, rel=0.05)
    assert float(quotient.abs().max()) <= 3**0.5 * std + 1e-6
    assert float(quotient.std()) == pytest.approx(std, rel=0.05)
    assert float(layers["main"].all_vectors(0).detach().std()) == pytest.approx(std, rel=0.06)


@pytest.mark.parametrize("operation", ["add", "concat"])
def test_vectors_of_other_operations_start_with_the_full_tables_variance(operation: str) -> None:
    tree = {**METHOD, "m": 300, "init_std": 0.02, "operation": operation}
    _, layers = build(tree, fields(100_000, 140), {"main": 16, "first_order": 1})
    for name, layer in layers.items():
        loose = 0.06 if name == "main" else 0.2  # few numbers
        for f in range(2):
            assert float(layer.all_vectors(f).detach().std()) == pytest.approx(0.02, rel=loose)


def test_dlrm_start() -> None:
    tree = {**METHOD, "m": 100, "init": "dlrm"}
    _, layers = build(tree, fields(10_000, 50), {"main": 16})
    digits, exact = layers["main"].tables[0].weight.detach().split([200, 50])
    assert 0.01 <= float(digits.min()) < 0.02
    assert 0.99 < float(digits.max()) <= 1
    assert float(exact.abs().max()) <= 50**-0.5
    assert float(exact.min()) < 0


@pytest.mark.parametrize("partitions", [2, 3])
@pytest.mark.parametrize(("n", "m"), [(10_001, 100), (10_000, 100), (999, 3), (1000, 12)])
def test_l2_is_that_of_the_vectors(n: int, m: int, partitions: int) -> None:
    tree = {**METHOD, "m": m, "partitions": partitions, "init_std": 0.3}
    train = {"embedding_l2": {"value": 0.05, "mode": "all_rows"}}
    _, layers = build(tree, fields(n, 9, 77), {"main": 8}, **train)
    layer = layers["main"]
    squares = sum(layer.all_vectors(f).double().square().sum() for f in range(3))
    assert float(layer.penalty().detach()) == pytest.approx(
        0.05 * float(squares.detach()) / 2, rel=1e-4
    )
    assert layer.penalised() == [layer.tables[0].weight]


def test_l2_leaves_factors_near_one() -> None:
    """On the rows themselves it would pull the factors that start at one to zero."""
    l2 = {"embedding_l2": {"value": 0.05, "mode": "all_rows"}, "learning_rate": 0.01}
    _, layers = build({**METHOD, "m": 30}, fields(2000), {"main": 8}, **l2)
    model = nn.ModuleDict({"layer": layers["main"]})
    optimizers = build_optimizers(model, TrainConfig(**l2))
    for _ in range(100):
        optimizers.zero_grad()
        layers["main"].penalty().backward()
        optimizers.step()
    assert float(layers["main"].tables[0].weight[:30].detach().mean()) > 0.5


def test_shared_rows_and_lists() -> None:
    id_map, layers = build({**METHOD, "m": 20})
    rows = id_map(encoded(4))
    assert rows.lists[0].shape == (4, 4, 2)  # history has the digits of item
    assert layers["main"](rows).shape == (4, 7, 16)
    ids = torch.arange(2000)
    assert torch.equal(id_map.list_rows(0, ids), id_map.field_rows(2, ids))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="m or budget, not both"):
        config({**METHOD, "m": 3, "budget": "1MB"})
    with pytest.raises(ValidationError, match="partitions 3 must divide embedding_dim 16"):
        config({**METHOD, "partitions": 3, "operation": "concat"})
    tree = {**METHOD, "partitions": 4, "operation": "concat"}
    with pytest.raises(InputError, match=r"embedding\.partitions 4: must divide the width 6"):
        build(tree, fields(100), {"main": 16, "other": 6})
    with pytest.raises(InputError, match=r"features\.url: .*embedding\.method unified"):
        build(METHOD, (FieldSpec("url", "categorical"),))
