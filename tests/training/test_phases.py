"""The phase interface carries what methods of several stages need, each shown by a small double."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trainer import CONFIG, MemoryRows, Net, rows, trainer
from torch import Tensor, nn

from recsys.settings import TrainConfig
from recsys.training.optimizers import ParameterGroup
from recsys.training.phase import Loop, Phase
from recsys.training.tracking import NullTracker
from recsys.training.trainer import Interrupted, Trainer
from recsys.types import Batch, Target


class Gated(nn.Module):
    """A network behind one gate per column; noise in training shows whether generators resume."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(4))
        self.net = Net(stop_at=stop_at)

    def forward(self, batch: Batch) -> Tensor:
        return self.net(batch._replace(floats=batch.floats * self.gate))


class Alternating(Phase):
    """Weights on training rows, gates on rows of a split of their own (bilevel search)."""

    def __init__(self, search: MemoryRows, noted: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__("search", 2, keep="last", early_stopping=False)
        self._search = search
        self._noted = noted

    def groups(self, loop: Loop) -> Sequence[ParameterGroup]:
        return [ParameterGroup("gates", [loop.model.gate], 0.01, optimizer="sgd")]

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        gates = [loop.model.gate.detach().clone()]
        loss = loop.descend(batch, target, only=("network",))
        gates.append(loop.model.gate.detach().clone())
        count = -(-len(self._search) // 32)
        epoch, start = divmod(step, count)
        pairs = self._search.batches(32, shuffle=True, seed=8, epoch=epoch, start=start)
        weights = [p.detach().clone() for p in loop.model.net.parameters()]
        loop.descend(*next(pairs), only=("gates",))
        for old, new in zip(weights, loop.model.net.parameters(), strict=True):
            assert torch.equal(old, new)
        gates.append(loop.model.gate.detach().clone())
        self._noted.append((gates[0], gates[1], gates[2]))
        return loss


def test_gates_move_on_search_rows_alone_and_weights_on_training_rows() -> None:
    noted: list[tuple[Tensor, Tensor, Tensor]] = []
    model = Gated()
    trainer(model, None).fit(rows(), rows(seed=1), [Alternating(rows(100, seed=4), noted)])
    assert len(noted) == 20
    for before, between, after in noted:
        assert torch.equal(before, between)
        assert not torch.equal(between, after)


class Evolution(Phase):
    """No gradient steps: every round tries candidates and keeps the best, elitist."""

    def __init__(self, generations: int) -> None:
        super().__init__("evolution", generations, keep="last", early_stopping=False)
        self.best = torch.zeros(())
        self.seen: list[float] = []

    def enter(self, loop: Loop) -> None:
        loop.model.gate.requires_grad_(False)

    def batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
        return iter(())

    def end_epoch(self, loop: Loop, epoch: int) -> dict[str, float]:
        parent = loop.model.gate.clone()
        for _ in range(3):
            loop.model.gate.copy_((torch.rand(4) < 0.7).float())
            fitness = loop.predict(loop.train_rows).metrics()["auc"]
            if fitness > float(self.best):
                self.best, parent = torch.tensor(fitness), loop.model.gate.clone()
        loop.model.gate.copy_(parent)
        self.seen.append(float(self.best))
        return {"evolution/best": float(self.best)}

    def state(self) -> dict[str, Tensor]:
        return {"best": self.best}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.best = tensors.get("best", self.best)


def test_a_phase_without_steps_improves_what_it_keeps() -> None:
    model = Gated()
    evolution = Evolution(4)
    result = trainer(model, None).fit(rows(), rows(seed=1), [Phase("train", 2), evolution])
    assert evolution.seen == sorted(evolution.seen)
    assert [e["evolution/best"] for e in result.phases["evolution"]] == evolution.seen
    assert result.steps == 20  # of the first phase
    loop = trainer(model, None)
    assert loop.predict(rows()).metrics()["auc"] == pytest.approx(evolution.seen[-1], abs=1e-6)


class PruneAfterStep(Phase):
    """Zeroes the smallest weights of the first layer after every step (prune while training)."""

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        loss = loop.descend(batch, target)
        weight = loop.model.net.net[0].weight.detach()
        weight[weight.abs() < weight.abs().median()] = 0
        return loss


@pytest.mark.parametrize("stop_at", [3, 19, 20, 21, 25, 33])
def test_resume_inside_and_between_phases_of_every_kind(stop_at: int, tmp_path: Path) -> None:
    def phases() -> list[Phase]:
        return [Alternating(rows(100, seed=4), []), Evolution(2), PruneAfterStep("retrain", 2)]

    whole, stopped, resumed = Gated(), Gated(stop_at), Gated()
    expected = trainer(whole, None).fit(rows(), rows(seed=1), phases())
    with pytest.raises(Interrupted):
        trainer(stopped, tmp_path).fit(rows(), rows(seed=1), phases())
    with torch.no_grad():
        resumed.net.net[0].weight.add_(1)
    torch.manual_seed(99)
    found = Trainer(model=resumed, config=CONFIG, seed=3, fingerprint="c", out=tmp_path).fit(
        rows(), rows(seed=1), phases()
    )
    assert found.phases == expected.phases
    assert found.steps == expected.steps == 40
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    share = (resumed.net.net[0].weight == 0).float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.05)


def test_a_phase_without_steps_stops_between_its_epochs(tmp_path: Path) -> None:
    seen: list[int] = []

    class Judging(Phase):
        """No step, and a signal in its second epoch."""

        def batches(self, loop: Loop, epoch: int, start: int) -> Iterator[tuple[Batch, Target]]:
            return iter(())

        def end_epoch(self, loop: Loop, epoch: int) -> dict[str, float]:
            seen.append(epoch)
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return {}

    def fit() -> None:
        trainer(Gated(), tmp_path).fit(rows(), None, [Judging("judge", 5), Phase("train", 1)])

    with pytest.raises(Interrupted, match="continues from here"):
        fit()
    assert seen == [0, 1]
    fit()
    assert seen == [0, 1, 2, 3, 4]


def test_keep_last_and_no_early_stopping() -> None:
    """All epochs run at one rate and the last weights stay, however bad the metric."""
    config = TrainConfig(batch_size=32, max_epochs=6, learning_rate=0.5, patience=1)
    model = Net()
    loop = trainer(model, None, config)
    phase = Phase("search", 6, keep="last", early_stopping=False)
    result = loop.fit(rows(), rows(seed=1), [phase])
    aucs = [entry["auc"] for entry in result.history]
    assert len(aucs) == 6
    assert aucs[-1] < max(aucs)
    assert loop.predict(rows(seed=1)).metrics()["auc"] == pytest.approx(aucs[-1], abs=1e-12)


def test_a_penalty_joins_the_loss_and_not_its_trace() -> None:
    class Shrunk(Phase):
        def penalty(self, loop: Loop) -> Tensor:
            return 100 * loop.model.linear.weight.abs().sum()

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, batch: Batch) -> Tensor:
            return self.linear(batch.floats).squeeze(1)

    config = TrainConfig(batch_size=300, max_epochs=1, optimizer="sgd", learning_rate=1e-3)
    torch.manual_seed(0)
    model = Linear()
    before = model.linear.weight.detach().clone()
    result = trainer(model, None, config).fit(rows(), rows(seed=1), [Shrunk("one", 1)])
    moved = before - model.linear.weight.detach()
    assert torch.allclose(moved, 0.1 * before.sign(), atol=2e-3)
    assert result.history[0]["train_loss"] < 2


class Recorder(NullTracker):
    """Which nested run each metric and picture went to."""

    def __init__(self) -> None:
        self.inside = ""
        self.metrics: dict[str, set[str]] = {}
        self.figures: list[tuple[str, str]] = []
        self.ended: list[str] = []

    def phase(self, name: str) -> AbstractContextManager[None]:
        @contextmanager
        def nested() -> Iterator[None]:
            self.inside = name
            yield
            self.ended.append(name)
            self.inside = ""

        return nested()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.setdefault(self.inside, set()).update(metrics)

    def log_figure(self, figure: Any, path: str) -> None:
        self.figures.append((self.inside, path))


def test_phases_are_nested_runs_and_one_phase_is_not() -> None:
    class Told(Phase):
        def end_epoch(self, loop: Loop, epoch: int) -> dict[str, float]:
            return {"method/temperature": 2.0**epoch}

        def end(self, loop: Loop) -> dict[str, Any]:
            return {"gates": object()}

    def fit(phases: list[Phase] | None) -> Recorder:
        tracker = Recorder()
        loop = Trainer(model=Net(), config=CONFIG, seed=3, tracker=tracker, log_every=1)
        loop.fit(rows(), rows(seed=1), phases)
        return tracker

    nested = fit([Told("search", 2), Phase("retrain", 1)])
    assert nested.ended == ["search", "retrain"]
    assert set(nested.metrics) == {"search", "retrain"}
    assert "method/temperature" in nested.metrics["search"]
    assert "method/temperature" not in nested.metrics["retrain"]
    assert {"valid/auc", "train/loss"} <= nested.metrics["retrain"]
    assert nested.figures == [("search", "plots/gates.png")]
    assert set(fit(None).metrics) == {""}
