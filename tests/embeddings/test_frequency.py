"""Popular ids own rows: which ones, what the tail gets, zero rows, budgets, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from embedding_cases import build, config
from pydantic import ValidationError

from recsys.embeddings.budget import budget_bytes
from recsys.embeddings.frequency import Frequency
from recsys.features.hashing import reduce_ids_np, salt
from recsys.types import Batch, FieldSpec, InputError


def field(name: str, counts: list[int] | np.ndarray) -> FieldSpec:
    return FieldSpec(name, "categorical", num_ids=len(counts), counts=np.asarray(counts))


def zipf(n: int, total: float) -> np.ndarray:
    weights = 1 / np.arange(1, n + 1)
    return np.sort(np.round(total * weights / weights.sum()))[::-1].astype(np.int64)


def plan(fields: tuple[FieldSpec, ...], **tree: object) -> Frequency:
    return Frequency(config({"method": "frequency", **tree}), fields, {"main": 16})


def test_the_most_frequent_ids_of_all_fields_own_rows() -> None:
    a, b = field("a", [90, 50, 20, 5, 4, 3]), field("b", [40, 30, 10, 9, 8, 7, 6, 1])
    solved = plan((a, b), rows=10, own=0.5, exact_below=0)
    assert solved.own == {"a": 3, "b": 2}  # 90, 50, 40, 30, 20
    # 5 rows for the tails of 3 and 6 ids: one each, 3 spare in proportion 2 : 5
    assert solved.tail == {"a": 1, "b": 4}


def test_null_and_unknown_ids_never_hold_back_popular_ones() -> None:
    counts = [0, 2, 100, 60, 40, 3, 2, 1, 1, 1]
    solved = plan((field("a", counts),), rows=8, own=0.7, exact_below=0)
    assert solved.own == {"a": 5}  # null and OOV before the three popular ones
    assert solved.tail == {"a": 3}


def test_ids_in_no_order_count_as_their_mean() -> None:
    """Buckets of a hash: no first id is more popular than others."""
    buckets = field("buckets", [7, 9, 8, 7, 9, 8, 9, 7, 8, 9])
    popular = field("popular", [50, 40, 30, 1, 1, 1, 1, 1])
    solved = plan((buckets, popular), rows=8, own=0.4, exact_below=0)
    assert solved.own == {"buckets": 0, "popular": 3}


def test_ties_go_to_fields_in_order_and_small_fields_are_exact() -> None:
    a, b, small = field("a", [5] * 8), field("b", [5] * 8), field("small", [1, 1, 1])
    solved = plan((a, b, small), rows=13, own=0.4, exact_below=3)
    assert solved.own == {"a": 4, "b": 0, "small": 3}
    assert sum(solved.tail.values()) == 13 - 7
    assert solved.tail["small"] == 0
    assert plan((a, b), rows=16).own == {"a": 8, "b": 8}
    assert plan((a, b), rows=16).tail == {"a": 0, "b": 0}


@pytest.mark.parametrize("own", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("rows", [3, 50, 400, 1100])
def test_every_row_is_dealt_out(own: float, rows: int) -> None:
    fields = (field("a", zipf(1000, 1e5)), field("b", zipf(80, 1e4)), field("c", zipf(50, 1e3)))
    solved = plan(fields, rows=rows, own=own, exact_below=0)
    assert sum(solved.own.values()) + sum(solved.tail.values()) == rows
    for one in fields:
        others = one.num_ids - solved.own[one.name]
        assert (solved.tail[one.name] > 0) == (others > 0)
        assert solved.tail[one.name] <= others


@pytest.mark.parametrize("lookups", [1, 2, 3])
def test_vectors_by_hand(lookups: int) -> None:
    fields = (field("a", zipf(1000, 1e5)), field("tiny", [3, 2, 1]))
    tree = {"method": "frequency", "rows": 203, "own": 0.5, "lookups": lookups, "init_std": 0.1}
    id_map, layers = build(tree, fields)
    table = layers["main"].tables[0].weight.detach()
    zero = lookups > 1
    assert table.shape == (203 + zero, 16)
    if zero:
        assert not table[-1].any()
    ids = torch.tensor([[0, 0], [99, 1], [100, 2], [999, 0]])
    empty = torch.zeros(4, 0)
    out = layers["main"](id_map(Batch(ids, empty, [], empty.long()))).detach()
    torch.testing.assert_close(out[:2, 0], table[[0, 99]])
    torch.testing.assert_close(out[:, 1], table[[200, 201, 202, 200]])
    for b, x in ((2, 100), (3, 999)):
        rows = [
            100 + int(reduce_ids_np(np.array([x]), salt("a", t), 100)[0]) for t in range(lookups)
        ]
        torch.testing.assert_close(out[b, 0], sum(table[r] for r in rows))
    assert layers["main"].memory().trainable_params == 203 * 16


def test_own_rows_and_tail_train_apart_and_the_zero_row_stays() -> None:
    fields = (field("a", zipf(1000, 1e5)),)
    id_map, layers = build({"method": "frequency", "rows": 200, "own": 0.5}, fields, {"main": 4})
    table = layers["main"].tables[0].weight
    empty = torch.zeros(1, 0)
    popular = Batch(torch.tensor([[7]]), empty, [], empty.long())
    layers["main"](id_map(popular)).sum().backward()
    assert table.grad is not None
    dense = table.grad.to_dense() if table.grad.is_sparse else table.grad
    assert dense.any(1).nonzero().flatten().tolist() == [7]


def test_vectors_start_with_the_same_variance() -> None:
    fields = (field("a", zipf(5000, 1e5)),)
    tree = {"method": "frequency", "rows": 3000, "own": 0.5, "init_std": 0.5, "lookups": 4}
    vectors = build(tree, fields)[1]["main"].all_vectors(0).detach()
    assert float(vectors[:1500].std()) == pytest.approx(0.5, rel=0.03)
    assert float(vectors[1500:].std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.05])
@pytest.mark.parametrize("lookups", [1, 2])
def test_a_budget_is_met_within_a_thousandth(share: float, lookups: int) -> None:
    fields = (
        field("a", zipf(300_000, 1e7)),
        field("b", zipf(50_000, 1e7)),
        field("c", zipf(9, 99)),
    )
    tree = {"method": "frequency", "budget": share, "lookups": lookups}
    _, layers = build(tree, fields, {"main": 16})
    limit = budget_bytes(share, fields, {"main": 16})
    assert 0.999 * limit <= layers["main"].memory().stored_bytes <= limit


def test_what_cannot_work_is_refused() -> None:
    fields = (field("a", zipf(1000, 1e5)), field("b", zipf(100, 1e5)))
    with pytest.raises(ValidationError, match="one of rows, compression and budget"):
        config({"method": "frequency", "rows": 3, "budget": "1MB"})
    with pytest.raises(InputError, match="gets 1 rows but needs at least 2"):
        build({"method": "frequency", "rows": 1}, fields)
    with pytest.raises(InputError, match=r"embedding\.method frequency needs at least"):
        build({"method": "frequency", "budget": "0.5KB"}, fields)
    with pytest.raises(InputError, match=r"features\.a: .* needs training counts"):
        build({"method": "frequency", "rows": 50}, (FieldSpec("a", "categorical", num_ids=100),))
    with pytest.raises(InputError, match=r"features\.url: .*embedding\.method unified"):
        build({"method": "frequency"}, (FieldSpec("url", "categorical"),))
