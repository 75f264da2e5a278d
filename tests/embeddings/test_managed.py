"""The managed table: who owns a row, and for how long; its sizes, and what is served."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from embedding_cases import build, config
from managed_cases import OPEN, ids_of, reader, rows_of, step
from pydantic import ValidationError

from recsys.compatibility import check_tables
from recsys.embeddings.managed_ids import HOLD, KEPT, ManagedIds, SortedIds
from recsys.embeddings.managed_store import ManagedRows
from recsys.embeddings.post_training import quantised
from recsys.settings import ExportConfig, TrainConfig
from recsys.types import NULL_ID, Batch, FieldSpec, InputError

# -- who owns a row --------------------------------------------------------------------------------


@pytest.mark.parametrize("eviction", ["lfu", "lru"])
@pytest.mark.parametrize("interval", [1, 5])
def test_hot_ids_keep_their_rows_over_a_hundred_steps_of_churn(
    eviction: str, interval: int
) -> None:
    model, optimizers = reader(rows=10, eviction=eviction, eviction_interval=interval)
    hot, first = [7, -(2**62), 2**63 - 1], 1000
    for _ in range(2 * interval):
        step(model, optimizers, ids_of([*hot, *range(first, first + 30)]))
        first += 30
    held = rows_of(model, hot)
    assert len(set(held)) == 3
    assert max(held) < 8
    changes = model.store().ids.changes
    for _ in range(100):
        step(model, optimizers, ids_of([*hot, *range(first, first + 30)]))
        first += 30
        assert rows_of(model, hot) == held
    assert model.store().ids.changes >= changes + 50 // interval  # cold rows did pass on


def test_the_last_row_is_that_of_misses_and_the_one_before_it_nulls() -> None:
    model, optimizers = reader(rows=10)
    assert rows_of(model, [NULL_ID, 0, 5, -1]) == [8, 9, 9, 9]
    step(model, optimizers, ids_of([5, NULL_ID, NULL_ID]))
    assert rows_of(model, [NULL_ID, 0, -1]) == [8, 9, 9]
    assert rows_of(model, [5])[0] < 8
    closed = (FieldSpec("user", "categorical", num_ids=100),)
    model, _ = reader(closed, rows=10)
    assert rows_of(model, [0, 1, 8, 9, 99]) == [8, 0, 7, 9, 9]  # eight own rows from the start


def test_no_two_ids_share_a_row() -> None:
    model, optimizers = reader(rows=500)
    rng = np.random.default_rng(0)
    for _ in range(20):
        step(model, optimizers, ids_of(rng.integers(-(2**63), 2**63, 40).tolist()))
    keys = model.store().ids.lookup.keys
    owners = keys[keys != NULL_ID].tolist()
    assert len(owners) == 498
    assert sorted(rows_of(model, owners)) == list(range(498))


def test_admission_is_exact() -> None:
    model, optimizers = reader(rows=10, admission=3)
    miss = 9
    step(model, optimizers, ids_of([1, 2]))
    step(model, optimizers, ids_of([1, 2, 2]))  # 1: twice, 2: three times
    assert [row == miss for row in rows_of(model, [1, 2])] == [True, False]
    step(model, optimizers, ids_of([3]))
    assert rows_of(model, [1]) == [miss]
    step(model, optimizers, ids_of([1]))
    assert rows_of(model, [1])[0] < 8
    assert rows_of(model, [3]) == [miss]


@pytest.mark.parametrize(("eviction", "loser"), [("lfu", 2), ("lru", 1)])
def test_lfu_and_lru_evict_another_id(eviction: str, loser: int) -> None:
    """Of two rows one goes to 3, at the end of the interval: that of 2, used twice, or that of 1,
    used three times but last in the first batch. An owner's uses count twice."""
    model, optimizers = reader(rows=4, eviction=eviction, eviction_interval=4)
    step(model, optimizers, ids_of([1, 1, 1, 2]))
    step(model, optimizers, ids_of([2]))
    step(model, optimizers, ids_of([3, 3, 3, 3, 3]))
    assert rows_of(model, [3]) == [3]  # no row is free, and the interval has not ended
    step(model, optimizers, ids_of([NULL_ID]))
    held = rows_of(model, [1, 2, 3])
    assert held[2] < 2
    assert [i + 1 for i, row in enumerate(held) if row == 3] == [loser]


def test_equals_a_plain_program() -> None:
    """Owners after every batch, against dictionaries and loops."""
    for eviction in ("lfu", "lru"):
        size, admission, interval = 20, 2, 3
        ids = ManagedIds(
            lookup=SortedIds(size=size, null=NULL_ID, wide=True),
            start=torch.tensor([3, 5]),
            waiting=2000,
            eviction=eviction,  # type: ignore[arg-type]
            admission=admission,
            interval=interval,
        )
        rng = np.random.default_rng(1)
        score: dict[int, float] = {3: 0.0, 5: 0.0}
        owners = {3, 5}
        seen: Counter[int] = Counter()
        for t in range(1, 60):
            batch = (rng.zipf(1.3, 40) % 200 + 3 * t).tolist()
            ids.use(torch.tensor([*batch, NULL_ID]))
            ids.settle()
            for key, count in Counter(batch).items():
                score[key] = score.get(key, 0.0) + count if eviction == "lfu" else t
                seen[key] += key not in owners and count
            ready = [k for k in seen if seen[k] >= admission and k not in owners]
            ready.sort(key=lambda k: (-score[k], -seen[k], k))
            entered: set[int] = set()
            for key in ready:
                if len(owners) < size:
                    owners.add(key)
                elif t % interval == 0:
                    least = min(set(owners) - entered, key=lambda k: (score[k], -k), default=key)
                    if score[least] * (HOLD if eviction == "lfu" else 1) < score[key]:
                        entered.add(key)
                        owners.remove(least)
                        owners.add(key)
                        del score[least]
                        seen[least] = 0
                seen[key] = 0 if key in owners else seen[key]
            if t % interval == 0 and eviction == "lfu":
                score = {k: v * KEPT for k, v in score.items()}
            keys = ids.lookup.keys
            assert keys[keys != NULL_ID].tolist() == sorted(owners), (eviction, t)
            kept = ids.score[keys != NULL_ID].tolist()
            assert kept == pytest.approx([score[k] for k in sorted(owners)])
            assert sorted(ids.slots.tolist()) == list(range(size + 2))


def test_a_full_waiting_list_forgets_those_used_least() -> None:
    ids = ManagedIds(
        lookup=SortedIds(size=1, null=NULL_ID, wide=True),
        start=torch.tensor([0]),
        waiting=16,
        eviction="lfu",
        admission=9,
        interval=1000,
    )
    rng = np.random.default_rng(0)
    for _ in range(8):
        ids.use(torch.tensor([1, 1, 2, 2, *rng.integers(10, 10**9, 12).tolist()]))
        ids.settle()
        waits = ids.waiting[ids.waiting != NULL_ID]
        assert torch.equal(waits, waits.unique())
    seen = dict(zip(ids.waiting.tolist(), ids.waiting_seen.tolist(), strict=True))
    assert (seen[1], seen[2]) == (16, 16)


def test_what_counts_as_a_use() -> None:
    """Lookups of training batches, null and the padding of lists left out, each once."""
    fields = (
        FieldSpec("item", "categorical"),
        FieldSpec("history", "sequence", shares="item", pooling="sum"),
    )
    model, optimizers = reader(fields, rows=10, admission=2)
    ids = torch.tensor([[1], [NULL_ID]])
    history = torch.tensor([[2, 3, NULL_ID], [3, NULL_ID, NULL_ID]])
    none = torch.zeros(2, 0)
    batch = Batch(ids, none, [history], torch.tensor([[2], [1]]))
    step(model, optimizers, batch)  # in two layers
    waits = model.store().ids
    seen = dict(zip(waits.waiting.tolist(), waits.waiting_seen.tolist(), strict=True))
    assert {key: n for key, n in seen.items() if n} == {1: 1, 2: 1}
    assert rows_of(model, [3])[0] < 8


def test_evaluation_and_serving_change_nothing() -> None:
    model, optimizers = reader(rows=10)
    step(model, optimizers, ids_of([1, 2, 3]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    model(ids_of([4, 5])).sum().backward()
    model.train()
    with torch.no_grad():
        model(ids_of([6, 7]))
    for layer in model.layers.values():
        layer.finalise()(model.id_map(ids_of([8, 9]))).sum().backward()  # type: ignore[operator]
    optimizers.zero_grad()
    optimizers.step()
    after = model.state_dict()
    owned = ("ids.", "weight")
    assert all(torch.equal(before[n], after[n]) for n in before if any(o in n for o in owned))


# -- sizes -----------------------------------------------------------------------------------------


def test_memory_by_hand() -> None:
    model, _ = reader(rows=100, embedding_gradient="dense", embedding_optimizer="adam")
    live, final = 0, 0
    for layer in model.layers.values():
        report = layer.memory()  # type: ignore[operator]
        live += report.stored_bytes
        final += layer.finalise().memory().stored_bytes  # type: ignore[operator]
    keys = 8 * 98 + 5 * 8 + 2 * 8  # sorted ids, the id map, and an order for each layer
    assert final == 4 * 17 * 100 + keys
    # row of each place, score, those who wait, batches
    state = keys + 4 * 100 + 4 * 98 + 1024 * (8 + 4 + 4) + 8
    assert live == 4 * 17 * 100 + state
    training = sum(layer.memory().training_bytes for layer in model.layers.values())  # type: ignore[operator]
    assert training == 4 * 4 * 17 * 100 + state


def test_rows_by_hand() -> None:
    """20,000 bytes for three fields of 68 bytes a row: the small one is exact, the others have N
    each, with ids of 4 and of 8 bytes for all but two rows."""
    fields = (
        FieldSpec("small", "categorical", num_ids=10),
        FieldSpec("large", "categorical", num_ids=1000),
        FieldSpec("open", "categorical"),
    )
    _, layers = build({"method": "managed", "budget": "20000B"}, fields)
    exact, large, open_ = (store.weight.size(0) for store in layers["main"].tables)
    assert exact == 10
    assert open_ - large in (0, 1)
    used = sum(layer.finalise().memory().stored_bytes for layer in layers.values())
    assert 20_000 - 76 < used <= 20_000
    index = used - 68 * (exact + large + open_) - 4 * (large - 2) - 8 * (open_ - 2)
    assert index == 3 * 5 * 8 + 2 * 3 * 8  # the id map, and an order for each layer
    _, layers = build({"method": "managed", "rows": {"open": 50}, "budget": "1MB"}, fields)
    assert [store.weight.size(0) for store in layers["main"].tables] == [1010, 50]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 3"):
        build({"method": "managed", "rows": 2}, OPEN)
    with pytest.raises(ValidationError, match="give rows or budget, not both"):
        build({"method": "managed", "rows": 10, "budget": "1MB"}, OPEN)
    with pytest.raises(InputError, match=r"embedding\.rows\.item: no feature .* known: user"):
        build({"method": "managed", "rows": {"item": 10}}, OPEN)
    with pytest.raises(InputError, match="managed needs at least"):
        build({"method": "managed", "budget": "100B"}, OPEN)
    model, _ = reader(rows=10)
    with pytest.raises(InputError, match="method managed keeps no rows of plain floats"):
        _ = model.layers["main"].float_tables
    for train, said in (
        ({"store": "torchrec", "optimizer": "sgd"}, "keeps its own tables"),
        ({"embedding_l2": {"value": 1.0, "mode": "batch_aware"}}, "pass from id to id"),
    ):
        with pytest.raises(ValueError, match=said):
            check_tables(config({"method": "managed"}), TrainConfig(**train), ExportConfig())  # type: ignore[arg-type]


# -- served ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "int8", "int4", "fp16"])
def test_the_serving_form_finds_the_same_rows(kind: Any) -> None:
    model, optimizers = reader(rows=10, eviction_interval=2, init_std=0.1)
    for first in range(0, 40, 4):
        step(model, optimizers, ids_of([100, *range(first, first + 4)]))
    batch = model.id_map(ids_of([NULL_ID, -5, *range(44), 100]))
    for layer in model.layers.values():
        final = layer.finalise()  # type: ignore[operator]
        if kind is not None:
            final = final.over([quantised(store, kind) for store in final.tables])
        (store,) = final.tables
        assert isinstance(store, ManagedRows)
        keys = store.lookup.keys.tolist()
        assert keys == sorted(keys)
        out, expected = final(batch), layer(batch)
        if kind is None:
            assert torch.equal(out, expected)
        else:
            spread = expected.max() - expected.min()
            assert (out - expected).abs().max() < spread / {"int4": 25, "int8": 250}.get(kind, 999)
            assert final.memory().stored_bytes < layer.finalise().memory().stored_bytes  # type: ignore[operator]
        torch.testing.assert_close(torch.jit.script(final)(batch), out, rtol=0, atol=0)
