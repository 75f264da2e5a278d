"""DeepLight: the target is reached in a short run, weights come back before the end, not after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from taught import TRAIN, Reader, lessons
from torch import Tensor

from recsys.selection.deeplight import DeepLight, DeepLightConfig, Prune, pruned_share
from recsys.training.phase import Loop
from recsys.training.trainer import Trainer
from recsys.types import Batch, Target

VALUES, DIM = 40, 8
SIZE = VALUES * DIM


def wrapped(**keys: Any) -> tuple[Reader, DeepLight, Trainer]:
    model = Reader(fields=1, values=VALUES, dim=DIM)
    settings = {"keep": 0.3, "every": 2, "warm_up_epochs": 1, "prune_epochs": 4, **keys}
    train = TRAIN.model_copy(update={"max_epochs": 2})
    selection = DeepLight(DeepLightConfig(method="deeplight", **settings), [model.layer], train)
    return model, selection, Trainer(model=model, config=train, seed=3)


def teacher() -> Tensor:
    made = torch.Generator().manual_seed(1)
    return torch.where(torch.rand(VALUES, DIM, generator=made) < 0.3, 2.0, 0.0)


def rows(seed: int = 1) -> Any:
    return lessons(teacher(), fields=1, count=2000, seed=seed)


def test_the_target_by_hand() -> None:
    assert pruned_share(0.9, 0, 400) == 0.0
    assert pruned_share(0.9, -5, 400) == 0.0
    assert pruned_share(0.9, 400, 400) == pytest.approx(0.9)
    assert pruned_share(0.9, 500, 400) == pytest.approx(0.9)
    assert pruned_share(0.9, 200, 400) == pytest.approx(0.9 * (1 - 0.001**0.5) / 0.999)
    # as published: 4 % of the way after 400 steps, within a thousandth after 68.7 thousand
    assert pruned_share(0.9, 400, None) == pytest.approx(0.9 * (1 - 0.99**4))
    assert pruned_share(0.9, 400, None) < 0.04
    assert pruned_share(0.9, 68_732, None) == pytest.approx(0.9 * 0.999, rel=1e-4)


def test_the_smallest_of_a_layer_go_and_count_exactly() -> None:
    model, selection, _ = wrapped()
    weight = selection.stores[0].weight
    with torch.no_grad():
        sizes = torch.randperm(SIZE, generator=torch.Generator().manual_seed(0)) + 1.0
        weight.copy_((sizes * (1 - 2 * (sizes % 2))).view(VALUES, DIM))
    before = weight.detach().clone()
    assert selection.prune(0.25) == (0, 80)
    assert torch.equal(weight == 0, before.abs() <= 80)
    assert torch.equal(weight[weight != 0], before[before.abs() > 80])
    with torch.no_grad():
        weight[before.abs() <= 8] = 500.0  # eight grow back; the next smallest take their place
    assert selection.prune(0.25) == (72, 80)
    assert torch.equal(weight == 0, (before.abs() > 8) & (before.abs() <= 88))
    assert model.layer.all_vectors(0).eq(0).sum() == 80


class Watched(Prune):
    """Notes how many weights are zero after each step, and the optimiser's count of steps."""

    def __init__(self, selection: DeepLight) -> None:
        super().__init__(selection)
        self.zeros: list[int] = []
        self.came_back = torch.zeros(VALUES, DIM, dtype=torch.bool)
        self.steps: list[int] = []

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        weight = self._selection.stores[0].weight
        before = weight.detach() == 0
        loss = super().step(loop, step, batch, target)
        self.zeros.append(int((weight == 0).sum()))
        self.came_back |= before & (weight.detach() != 0)
        tensors, _ = loop._optimizers.state()  # type: ignore[attr-defined]
        (count,) = (value for key, value in tensors.items() if key.endswith("weight:step"))
        self.steps.append(int(count))
        return loss


def test_a_short_run_reaches_its_share_and_stays_there() -> None:
    model, selection, trainer = wrapped()
    prune, settle = Watched(selection), selection.phases()[1]
    steps = 8  # of an epoch
    history = trainer.fit(rows(), rows(2), [prune, settle]).phases
    assert not any(prune.zeros[:steps])  # the warm-up is dense
    assert prune.zeros[steps + 1] == round(pruned_share(0.7, 2, 4 * steps) * SIZE)
    assert prune.zeros[-1] == round(0.7 * SIZE)
    assert prune.came_back.any()
    assert prune.steps == list(range(1, 5 * steps + 1))  # one optimiser, warm-up included
    shares = [entry["selection/pruned_share"] for entry in history["prune"]]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.7)
    assert any(entry["selection/regrown_share"] > 0 for entry in history["prune"])
    # the mask has not moved since, and what it closes is zero in the table, too
    store = selection.stores[0]
    assert int(store.mask.sum()) == SIZE - round(0.7 * SIZE)
    assert not store.weight[~store.mask].any()
    assert store.weight[store.mask].all()
    report = selection.report()
    assert report["parameters"] == SIZE
    assert report["parameters_kept"] == SIZE - round(0.7 * SIZE)
    assert torch.equal(model.layer.all_vectors(0), store.served())


def test_what_the_teacher_uses_stays() -> None:
    _, selection, trainer = wrapped(prune_epochs=6)
    trainer.fit(lessons(teacher(), fields=1, count=6000, seed=1), rows(2), selection.phases())
    kept = selection.stores[0].mask[teacher() != 0].float().mean()
    assert kept > 0.9  # 0.3 by chance


def test_the_paper_has_one_phase_and_its_own_target() -> None:
    _, selection, trainer = wrapped(paper=True)
    (phase,) = selection.phases()
    trainer.fit(rows(), rows(2), [phase])
    missed = round(pruned_share(0.7, 32, None) * SIZE)  # one weight of 320, not 224
    assert int((~selection.stores[0].mask).sum()) == missed == 1
