"""The managed table: who owns a row, for how long, and what the next owner finds."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedding_cases import build
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.compatibility import check_tables
from recsys.embeddings import EmbeddingLayer, IdMap
from recsys.embeddings.managed_ids import KEPT, ManagedIds, SortedIds
from recsys.embeddings.managed_store import ManagedRows, ManagedStore
from recsys.embeddings.post_training import quantised
from recsys.settings import TrainConfig
from recsys.training.metrics import auc
from recsys.training.optimizers import Optimizers, build_optimizers
from recsys.training.trainer import Interrupted, Trainer
from recsys.types import NULL_ID, Batch, FieldSpec, InputError, Target

OPEN = (FieldSpec("user", "categorical"),)
STD = 1e-4


class Reader(nn.Module):
    """A linear reader of every layer."""

    def __init__(self, id_map: IdMap, layers: dict[str, EmbeddingLayer]) -> None:
        super().__init__()
        self.id_map = id_map
        self.layers = nn.ModuleDict(layers)
        width = sum(len(layer.fields) * layer.dim for layer in layers.values())
        self.head = nn.Linear(width, 1)

    def forward(self, batch: Batch) -> Tensor:
        rows = self.id_map(batch)
        vectors = [layer(rows).flatten(1) for layer in self.layers.values()]
        scores: Tensor = self.head(torch.cat(vectors, 1)).squeeze(1)
        return scores

    def store(self, layer: str = "main", table: int = 0) -> ManagedStore:
        found = self.layers[layer].tables[table]  # type: ignore[union-attr, index]
        assert isinstance(found, ManagedStore)
        return found


def reader(
    fields: tuple[FieldSpec, ...] = OPEN, dims: dict[str, int] | None = None, **keys: Any
) -> tuple[Reader, Optimizers]:
    train = {key: keys.pop(key) for key in list(keys) if key in TrainConfig.model_fields}
    train = {"learning_rate": 0.1, **train}
    made = build({"method": "managed", "admission": 1, **keys}, fields, dims, **train)
    model = Reader(*made)
    return model, build_optimizers(model, TrainConfig(**train))


def ids_of(*columns: list[int]) -> Batch:
    ids = torch.tensor(columns).T
    none = torch.zeros(len(ids), 0)
    return Batch(ids, none, [], none.long())


def step(model: Reader, optimizers: Optimizers, batch: Batch) -> None:
    optimizers.zero_grad()
    labels = torch.ones(len(batch.ids))
    F.binary_cross_entropy_with_logits(model(batch), labels).backward()
    optimizers.step()


def rows_of(model: Reader, ids: list[int], layer: str = "main") -> list[int]:
    return model.store(layer).rows_of(torch.tensor(ids)).tolist()


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
    assert model.store().ids.changes >= changes + 100 // interval  # cold rows did pass on


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
    used three times but last in the first batch."""
    model, optimizers = reader(rows=4, eviction=eviction, eviction_interval=4)
    step(model, optimizers, ids_of([1, 1, 1, 2]))
    step(model, optimizers, ids_of([2]))
    step(model, optimizers, ids_of([3, 3, 3]))
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
            for key in ready:
                if len(owners) < size:
                    owners.add(key)
                elif t % interval == 0:
                    least = min(owners, key=lambda k: (score[k], -k))
                    if score[least] < score[key]:
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


# -- what the next owner finds ---------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "rowwise_adagrad", "sgd"])
@pytest.mark.parametrize("gradient", ["dense", "sparse"])
def test_a_reused_row_is_a_fresh_one_and_the_optimiser_has_forgotten_it(
    optimizer: str, gradient: str
) -> None:
    settings = {"embedding_optimizer": optimizer, "embedding_gradient": gradient}
    model, optimizers = reader(rows=4, eviction="lru", eviction_interval=1, **settings)
    for _ in range(3):
        step(model, optimizers, ids_of([1, 2]))
    (kept, lost) = rows_of(model, [1, 2])
    old = {name: model.store(name).weight.detach().clone() for name in model.layers}
    if optimizer != "sgd":
        assert old["main"][lost].abs().min() > 5 * STD
    optimizers.zero_grad()
    model(ids_of([1, 3])).sum().backward()
    random = torch.get_rng_state()
    optimizers.step()
    assert rows_of(model, [1, 3]) == rows_of(model, [1, 3], "first_order") == [kept, lost]
    torch.set_rng_state(random)
    state = optimizers.state()[0]
    for name in model.layers:
        weight = model.store(name).weight
        fresh = nn.init.normal_(torch.empty(1, weight.size(1)), std=STD)
        assert torch.equal(weight[lost], fresh[0])
        assert not torch.equal(weight[kept], old[name][kept])
        entries = [v for k, v in state.items() if f".{name}." in k and v.dim() == 2]
        assert len(entries) == {"adam": 2, "sgd": 0}.get(optimizer, 1)
        for entry in entries:
            assert not entry[lost].any()
            assert entry[kept].any()


def test_l2_on_all_rows_and_clipping_work_as_on_any_table() -> None:
    settings = {"embedding_l2": {"value": 0.1}, "clip_norm": 1.0}
    model, optimizers = reader(rows=10, **settings)
    weight = model.store().weight
    with torch.no_grad():
        weight.fill_(1.0)
    step(model, optimizers, ids_of([1]))
    assert (weight[3] < 1).all()  # a row of no id in the batch


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
    config = reader_config()
    for train, said in (
        ({"store": "torchrec", "optimizer": "sgd"}, "keeps its own tables"),
        ({"embedding_l2": {"value": 1.0, "mode": "batch_aware"}}, "pass from id to id"),
    ):
        with pytest.raises(ValueError, match=said):
            check_tables(config, TrainConfig(**train))  # type: ignore[arg-type]


def reader_config() -> Any:
    from embedding_cases import config

    return config({"method": "managed"})


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


# -- exact resume ----------------------------------------------------------------------------------


@dataclass
class Stream:
    """Rows in memory, in order, with the batching contract of `recsys.data.EncodedData`."""

    ids: Tensor
    label: Tensor
    fingerprint: str = "stream"

    def __len__(self) -> int:
        return len(self.label)

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[tuple[Batch, Target]]:
        for first in range(start * batch_size, len(self), batch_size):
            part = slice(first, first + batch_size)
            label = self.label[part]
            none = torch.zeros(len(label), 0)
            target = Target(label, torch.ones(len(label)), torch.zeros(len(label)).long())
            yield Batch(self.ids[part], none, [], none.long()), target


class Stopping(Reader):
    """Asks for a stop at a call in training."""

    stop_at = 0
    calls = 0

    def forward(self, batch: Batch) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(batch)


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
@pytest.mark.parametrize("stop_at", [3, 10, 13, 27])
def test_stop_and_resume_equals_one_run_bit_for_bit(
    tmp_path: Path, stop_at: int, gradient: str
) -> None:
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.zipf(1.2, (640, 1)) % 300 + np.arange(640)[:, None] // 8)
    data = Stream(ids, torch.from_numpy(rng.integers(0, 2, 640).astype(np.float32)))
    config = TrainConfig(
        batch_size=32,
        max_epochs=2,
        learning_rate=0.01,
        patience=3,
        embedding_gradient=gradient,  # type: ignore[arg-type]
    )
    keys = {"method": "managed", "rows": 12, "eviction_interval": 4}

    def trained(stop: int, out: Path | None, seed: int) -> tuple[Stopping, list[Any]]:
        model = Stopping(*build(keys, OPEN, seed=seed, embedding_gradient=gradient))
        model.stop_at = stop
        run = Trainer(model=model, config=config, seed=3, fingerprint="c", out=out)
        return model, [run.fit(data, data).history]

    torch.manual_seed(0)
    whole, history = trained(0, None, 0)
    with pytest.raises(Interrupted, match=f"step {stop_at}"):
        trained(stop_at, tmp_path, 0)
    resumed, again = trained(0, tmp_path, 5)
    assert again == history
    assert whole.store().ids.changes > 3
    assert resumed.store().ids.changes < whole.store().ids.changes
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


# -- what it is for --------------------------------------------------------------------------------


def drift_auc(tree: dict[str, Any], days: int = 12, steps: int = 40) -> float:
    """Mean AUC of the next day's rows, days 4 on. Every day has 400 ids, of Zipf's popularity, a
    quarter of them new; each has an effect of its own. Trained in the order of time."""
    rng = np.random.default_rng(0)
    model = Reader(*build(tree, OPEN, {"main": 8}))
    optimizers = build_optimizers(model, TrainConfig(learning_rate=0.02))
    popularity = np.arange(1, 401) ** -0.8
    popularity /= popularity.sum()
    live = rng.integers(-(2**63), 2**63, 400)
    effect = rng.normal(0, 2, 400)
    found = []

    def rows(count: int) -> tuple[Batch, Tensor]:
        which = rng.choice(400, count, p=popularity)
        label = (rng.random(count) < 1 / (1 + np.exp(-effect[which]))).astype(np.float32)
        return ids_of(live[which].tolist()), torch.from_numpy(label)

    for day in range(days):
        new = rng.choice(400, 100, replace=False)
        live[new], effect[new] = rng.integers(-(2**63), 2**63, 100), rng.normal(0, 2, 100)
        for _ in range(steps):
            batch, label = rows(512)
            optimizers.zero_grad()
            F.binary_cross_entropy_with_logits(model(batch), label).backward()
            optimizers.step()
        if day >= 3:
            batch, label = rows(20_000)
            model.eval()
            with torch.no_grad():
                found.append(auc(label.numpy(), model(batch).numpy()))
            model.train()
    return float(np.mean(found))


def test_where_ids_come_and_go_it_beats_hashing_of_the_same_bytes() -> None:
    managed = {"method": "managed", "rows": 402, "init_std": 0.03}
    bytes_ = 4 * 8 * 402 + 8 * 400
    hashed = {"method": "hash", "rows": {"user": bytes_ // 32}, "init_std": 0.03}
    lfu, lru = drift_auc(managed), drift_auc({**managed, "eviction": "lru"})
    other = drift_auc(hashed)
    print(f"managed lfu {lfu:.4f} lru {lru:.4f} hash {other:.4f}")
    assert lfu > other + 0.02
