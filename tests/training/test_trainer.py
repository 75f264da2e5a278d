"""The loop: exact resume, signals, schedules, weights, refusals."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from recsys.settings import TrainConfig
from recsys.testing.rows import MemoryRows
from recsys.training import checkpoint
from recsys.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from recsys.training.prediction import slow_precision
from recsys.training.schedule import Schedule
from recsys.training.trainer import Interrupted, Phase, Trainer
from recsys.types import Batch, InputError, Target


def rows(count: int = 300, seed: int = 0, fingerprint: str = "rows") -> MemoryRows:
    generator = torch.Generator().manual_seed(seed)
    floats = torch.randn(count, 4, generator=generator)
    label = (torch.rand(count, generator=generator) < torch.sigmoid(2 * floats[:, 0])).float()
    return MemoryRows(floats=floats, label=label, fingerprint=fingerprint)


class Net(nn.Module):
    """Dropout and batch norm: both carry state that a resume must restore."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)
        )
        self.stop_at = stop_at
        self.calls = 0

    def forward(self, batch: Batch) -> Tensor:
        if self.training:
            self.calls += 1
            if self.calls == self.stop_at:
                os.kill(os.getpid(), signal.SIGINT)
        return self.net(batch.floats).squeeze(1)


CONFIG = TrainConfig(batch_size=32, max_epochs=4, learning_rate=0.01, warmup_steps=5, patience=4)


def trainer(model: nn.Module, out: Path | None, config: TrainConfig = CONFIG) -> Trainer:
    torch.manual_seed(7)
    return Trainer(model=model, config=config, seed=3, fingerprint="c", out=out)


@pytest.mark.parametrize("stop_at", [1, 7, 10, 11, 23])
def test_stop_and_resume_equals_one_run_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    whole = Net()
    expected = trainer(whole, None).fit(rows(), rows(seed=1))

    stopped = Net(stop_at=stop_at)
    with pytest.raises(Interrupted, match=f"step {stop_at}"):
        trainer(stopped, tmp_path).fit(rows(), rows(seed=1))
    resumed = Net()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.add_(1.0)  # a resume must not depend on what the model held before
    torch.manual_seed(99)
    result = Trainer(model=resumed, config=CONFIG, seed=3, fingerprint="c", out=tmp_path).fit(
        rows(), rows(seed=1)
    )

    assert result.steps == expected.steps == 40
    assert result.history == expected.history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_two_runs_are_equal() -> None:
    first, second = Net(), Net()
    trainer(first, None).fit(rows(), rows(seed=1))
    trainer(second, None).fit(rows(), rows(seed=1))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_every_parameter_moves_after_one_step() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.named_parameters()}
    config = TrainConfig(batch_size=300, max_epochs=1, optimizer="adam")
    trainer(model, None, config).fit(rows())
    for name, value in model.named_parameters():
        assert not torch.equal(before[name], value), name


def test_resume_of_other_config_or_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trainer(Net(stop_at=3), tmp_path).fit(rows())
    with pytest.raises(InputError, match="the training data has changed"):
        trainer(Net(), tmp_path).fit(rows(fingerprint="other"))
    other = Trainer(model=Net(), config=CONFIG, seed=3, fingerprint="d", out=tmp_path)
    with pytest.raises(InputError, match="another config"):
        other.fit(rows())


def test_half_written_checkpoint_is_ignored(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trainer(Net(stop_at=3), tmp_path).fit(rows())
    (tmp_path / ".writing-123").mkdir()
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    assert saved.state["position"]["total_steps"] == 3


def test_a_second_checkpoint_of_a_step_never_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of an epoch saves again what ``checkpoint_steps`` has just saved; a kill at any of
    its calls leaves one of the two."""
    made = Checkpoint({"w": torch.ones(1)}, {}, {}, {}, {}, {"number": 1})
    save_checkpoint(tmp_path, made, step=4)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for module, call in ((checkpoint.os, "replace"), (checkpoint.shutil, "rmtree")):
        for number, step in ((2, 4), (3, 4)):
            monkeypatch.setattr(module, call, killed)
            with pytest.raises(KeyboardInterrupt):
                save_checkpoint(tmp_path, replace(made, state={"number": number}), step=step)
            monkeypatch.undo()
            saved = load_checkpoint(tmp_path)
            assert saved is not None
            assert saved.state["number"] in (1, number)
    save_checkpoint(tmp_path, replace(made, state={"number": 9}), step=4)
    assert len(list(tmp_path.iterdir())) == 1
    saved = load_checkpoint(tmp_path)
    assert saved is not None
    assert saved.state["number"] == 9


def test_a_full_disk_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left"):
        save_checkpoint(tmp_path, Checkpoint({}, {}, {}, {}, {}, {}), step=1)


@pytest.mark.parametrize("file", ["state.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_one_clear_line(tmp_path: Path, file: str) -> None:
    with pytest.raises(Interrupted):
        trainer(Net(stop_at=3), tmp_path).fit(rows())
    (damaged,) = tmp_path.glob(f"step-*/{file}")
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(InputError, match=r"cannot be read .*; remove .* to start anew") as error:
        trainer(Net(), tmp_path).fit(rows())
    assert "\n" not in str(error.value)


def test_best_weights_come_back() -> None:
    model = Net()
    config = TrainConfig(batch_size=32, max_epochs=6, learning_rate=0.5, patience=6)
    loop = trainer(model, None, config)
    result = loop.fit(rows(), rows(seed=1))
    best = max(entry["auc"] for entry in result.history)
    assert loop.predict(rows(seed=1)).metrics()["auc"] == pytest.approx(best, abs=1e-12)


def test_zero_weight_rows_do_not_train() -> None:
    """Rows of weight 0 with wrong labels leave the weights as if they were not there."""
    data = rows(64)
    noisy = MemoryRows(
        floats=data.floats.repeat(2, 1),
        label=torch.cat([data.label, 1 - data.label]),
        weight=torch.cat([torch.ones(64), torch.zeros(64)]),
    )
    config = TrainConfig(batch_size=128, max_epochs=1, optimizer="sgd", learning_rate=0.1)
    plain, weighted = nn.Linear(4, 1), nn.Linear(4, 1)
    weighted.load_state_dict(plain.state_dict())

    class Linear(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, batch: Batch) -> Tensor:
            return self.linear(batch.floats).squeeze(1)

    trainer(Linear(plain), None, config).fit(data)
    trainer(Linear(weighted), None, config).fit(noisy)
    assert torch.allclose(plain.weight, weighted.weight, atol=1e-7)


def test_phases_run_in_order_and_restart_the_schedule() -> None:
    seen: list[str] = []

    class Noted(Phase):
        def start(self, model: nn.Module) -> None:
            seen.append(self.name)

    result = trainer(Net(), None).fit(
        rows(), rows(seed=1), [Noted("search", 2), Noted("retrain", 1)]
    )
    assert seen == ["search", "retrain"]
    assert [entry["epoch"] for entry in result.history] == [0, 1, 0]
    assert result.steps == 30


def test_diverged_loss_is_one_clear_line() -> None:
    bad = rows()
    bad.floats[5, 0] = float("inf")
    with pytest.raises(InputError, match="the loss is nan at step"):
        trainer(Net(), None).fit(bad)


def test_empty_train_is_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        trainer(Net(), None).fit(rows(0))


def test_bf16_trains_close_to_fp32() -> None:
    fp32, bf16 = Net(), Net()
    trainer(fp32, None).fit(rows(2000), rows(500, seed=1))
    config = CONFIG.model_copy(update={"precision": "bf16"})
    loop = trainer(bf16, None, config)
    loop.fit(rows(2000), rows(500, seed=1))
    auc = loop.predict(rows(500, seed=1)).metrics()["auc"]
    assert auc == pytest.approx(
        trainer(fp32, None).predict(rows(500, seed=1)).metrics()["auc"], abs=0.02
    )


def test_scores_that_are_no_numbers_end_the_run() -> None:
    schedule, nan = Schedule(TrainConfig()), float("nan")
    schedule.judge(0, {"auc": 0.6, "logloss": 0.5, "rows": 9.0})
    with pytest.raises(InputError, match="valid, epoch 2: scores of some rows are not numbers"):
        schedule.judge(1, {"auc": nan, "logloss": nan, "rows": 9.0})


def test_schedule_follows_hand_computed_scales() -> None:
    config = TrainConfig(
        warmup_steps=4, plateau_factor=0.1, patience=3, learning_rate=1e-3, min_learning_rate=1e-6
    )
    schedule = Schedule(config)
    assert [schedule.lr_scale(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert schedule.judge(0, {"auc": 0.7})
    assert not schedule.judge(1, {"auc": 0.6})
    assert schedule.lr_scale(9) == pytest.approx(0.1)
    assert not schedule.judge(2, {"auc": float("nan")})
    assert schedule.lr_scale(9) == pytest.approx(0.01)
    assert not schedule.exhausted
    assert not schedule.judge(3, {"auc": 0.7})
    assert schedule.exhausted
    for epoch in range(4, 9):
        schedule.judge(epoch, {"auc": 0.1})
    assert schedule.lr_scale(9) == pytest.approx(1e-3)  # min_learning_rate / learning_rate


def test_schedule_decays_from_the_warm_up_to_the_floor_at_the_last_step() -> None:
    settings = {"warmup_steps": 2, "learning_rate": 1e-3, "min_learning_rate": 1e-5}
    linear = Schedule(TrainConfig(**settings, decay="linear"), steps=10)
    assert [linear.lr_scale(step) for step in (0, 1, 2, 4, 6)] == [0.5, 1.0, 1.0, 0.75, 0.5]
    assert linear.lr_scale(10) == pytest.approx(0.01)
    cosine = Schedule(TrainConfig(**settings, decay="cosine"), steps=10)
    assert cosine.lr_scale(4) == pytest.approx((1 + 2**-0.5) / 2)  # a quarter of the way
    assert cosine.lr_scale(6) == pytest.approx(0.5)
    slower = Schedule(TrainConfig(**settings, decay="cosine"), steps=10, rate=0.1)
    assert slower.lr_scale(6) == pytest.approx(0.05)
    assert slower.lr_scale(25) == pytest.approx(0.01)  # the same floor
    assert cosine.lr_scale(25) == pytest.approx(0.01)  # never below, nor up again
    for epoch in range(9):  # bad epochs change nothing, unless the config says so
        cosine.judge(epoch, {"auc": 0.5})
    assert cosine.lr_scale(6) == pytest.approx(0.5)
    assert not cosine.exhausted
    asked = Schedule(TrainConfig(**settings, decay="linear", patience=3, plateau_factor=0.5))
    for epoch in range(4):
        assert not asked.exhausted
        asked.judge(epoch, {"auc": 0.5})
    assert asked.exhausted
    assert asked.plateau_scale == 0.125


@pytest.mark.parametrize(
    ("able", "slow"),
    [
        ({"architecture": "x86_64", "avx2": True}, True),
        ({"architecture": "x86_64", "avx2": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_bf16_is_called_slow_where_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, object], slow: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    note = slow_precision("bf16", "cpu")
    assert (note is not None) == slow
    assert note is None or "set train.precision to fp32" in note
    assert slow_precision("fp32", "cpu") is None
    assert slow_precision("bf16", "cuda") is None


def test_a_monitor_that_valid_does_not_define_is_refused_at_once() -> None:
    positive = MemoryRows(floats=torch.randn(50, 4), label=torch.ones(50))
    with pytest.raises(InputError, match=r"train\.monitor auc is not defined on valid: .*logloss"):
        trainer(Net(), None).fit(rows(), positive)


def test_lower_is_better_for_logloss() -> None:
    schedule = Schedule(TrainConfig(monitor="logloss"))
    assert schedule.judge(0, {"logloss": 0.5})
    assert schedule.judge(1, {"logloss": 0.4})
    assert not schedule.judge(2, {"logloss": 0.45})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="torch sees no GPU here"):
        Trainer(model=Net(), config=TrainConfig(device="cuda"), seed=0)


class Ramp(nn.Module):
    """A model of one number whose loss is ``slope`` times that number."""

    def __init__(self, slope: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.slope = slope

    def forward(self, batch: Batch) -> Tensor:
        return self.w.expand(len(batch.floats))

    def loss(self, batch: Batch, target: Target) -> Tensor:
        return self.slope * self.w


SGD = TrainConfig(batch_size=100, max_epochs=1, optimizer="sgd", learning_rate=1.0)


def test_every_phase_warms_up() -> None:
    config = SGD.model_copy(update={"warmup_steps": 4})
    for phases in (1, 2):
        model = Ramp()
        named = [Phase(f"p{n}", 1) for n in range(phases)]
        trainer(model, None, config).fit(rows(400), None, named)
        assert model.w.item() == pytest.approx(-phases * (0.25 + 0.5 + 0.75 + 1))


def test_gradients_are_clipped() -> None:
    for norm, moved in ((None, 100.0), (1.0, 1.0)):
        model = Ramp(slope=100)
        config = SGD.model_copy(update={"clip_norm": norm})
        trainer(model, None, config).fit(rows(100))
        assert model.w.item() == pytest.approx(-moved, rel=1e-4)


def test_training_ends_without_a_better_epoch_and_keeps_the_best() -> None:
    judged = iter([0.6, 0.7, 0.65, 0.66, 0.9])
    model = Ramp()
    config = SGD.model_copy(update={"max_epochs": 5, "patience": 2, "plateau_factor": 1.0})
    loop = Trainer(
        model=model, config=config, seed=3, evaluate=lambda model, rows: {"auc": next(judged)}
    )
    result = loop.fit(rows(100), rows(10))
    assert [entry["auc"] for entry in result.history] == [0.6, 0.7, 0.65, 0.66]
    assert model.w.item() == pytest.approx(-2.0)  # one step an epoch, two epochs


def test_bf16_is_for_training_alone() -> None:
    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, batch: Batch) -> Tensor:
            out = self.linear(batch.floats)
            seen[self.training].add(out.dtype)
            return out.squeeze(1)

    config = SGD.model_copy(update={"precision": "bf16"})
    trainer(Noting(), None, config).fit(rows(100), rows(50))
    assert seen == {True: {torch.bfloat16}, False: {torch.float32}}
