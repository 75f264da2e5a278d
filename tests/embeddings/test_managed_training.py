"""The managed table in training: a row's next owner, exact resume, what it is for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedding_cases import build
from managed_cases import OPEN, Reader, ids_of, reader, rows_of, step
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.settings import TrainConfig
from recsys.testing.rows import MemoryRows
from recsys.training.metrics import auc
from recsys.training.optimizers import build_optimizers
from recsys.training.trainer import Interrupted, Trainer
from recsys.types import Batch, Target

STD = 1e-4


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


def test_l2_on_all_rows_works_as_on_any_table() -> None:
    model, optimizers = reader(rows=10, embedding_l2={"value": 0.1})
    weight = model.store().weight
    with torch.no_grad():
        weight.fill_(1.0)
    step(model, optimizers, ids_of([1]))
    assert (weight[3] < 1).all()  # a row of no id in the batch


# -- exact resume ----------------------------------------------------------------------------------


class Stream(MemoryRows):
    """Rows in their order, whatever they are asked for."""

    def batches(self, batch_size: int, **how: Any) -> Iterator[tuple[Batch, Target]]:
        return super().batches(batch_size, start=how.get("start", 0))


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
    data = Stream(ids=ids, label=torch.from_numpy(rng.integers(0, 2, 640).astype(np.float32)))
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
    assert min(lfu, lru) > other + 0.03, (lfu, lru, other)  # .830, .833, .783
