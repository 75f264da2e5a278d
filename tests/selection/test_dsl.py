"""Dynamic sparse learning: an exact budget, exact zeros, clean optimiser state, a planted mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from taught import TRAIN, Reader, lessons
from torch import Tensor

from recsys.selection.dsl import Dsl, DslConfig, Grow, swap_share
from recsys.settings import TrainConfig
from recsys.testing.rows import MemoryRows
from recsys.training.phase import Loop, Phase
from recsys.training.trainer import Trainer
from recsys.types import Batch, Target

VALUES, DIM, KEEP = 40, 8, 0.25


def teacher() -> Tensor:
    """A quarter of the entries, some rows many and some none."""
    made = torch.Generator().manual_seed(1)
    kept = torch.rand(VALUES, DIM, generator=made) < torch.linspace(0, 0.5, VALUES).unsqueeze(1)
    signs = torch.randint(0, 2, (VALUES, DIM), generator=made) * 2.0 - 1
    return torch.where(kept, 1.5 * signs, 0.0)


def taught(count: int = 4000, seed: int = 1) -> MemoryRows:
    return lessons(teacher(), fields=1, count=count, seed=seed)


def wrapped(train: TrainConfig = TRAIN, **keys: Any) -> tuple[Reader, Dsl, Trainer]:
    model = Reader(fields=1, values=VALUES, dim=DIM, train=train)
    settings = {"keep": KEEP, "every": 3, "grow_epochs": 6, **keys}
    selection = Dsl(DslConfig(method="dsl", **settings), [model.layer], train)
    return model, selection, Trainer(model=model, config=train, seed=3)


def test_the_share_that_changes() -> None:
    assert swap_share(0.5, 0, 100) == pytest.approx(0.5)
    assert swap_share(0.5, 50, 100) == pytest.approx(0.2525)
    assert swap_share(0.5, 100, 100) == pytest.approx(0.005)
    assert swap_share(0.0, 30, 100) == 0.0


class Watched(Grow):
    """Looks at masks, weights and optimiser state after every step."""

    changes = 0

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        store = self._selection.stores[0]
        before = store.mask.clone()
        loss = super().step(loop, step, batch, target)
        assert int(store.mask.sum()) == round(KEEP * VALUES * DIM)
        assert not store.weight[~store.mask].any()
        grown = store.mask & ~before
        self.changes += bool(grown.any())
        assert not store.weight[grown].any()
        if not self._config.paper:
            tensors, _ = loop._optimizers.state()  # type: ignore[attr-defined]
            for name, value in tensors.items():
                if "weight" in name and value.shape == store.mask.shape:
                    assert not value[~store.mask | grown].any(), name
                    assert value[store.mask & ~grown].any(), name
        return loss


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd", "rowwise_adagrad"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_budget_zeros_and_state_at_every_step(
    optimizer: str, gradient: str, clip: float | None
) -> None:
    train = TRAIN.model_copy(
        update={
            "embedding_optimizer": optimizer,
            "embedding_gradient": gradient,
            "clip_norm": clip,
            "max_epochs": 3,
        }
    )
    _, selection, trainer = wrapped(train)
    phase = Watched(selection, 3)
    trainer.fit(taught(1000), None, [phase])
    assert phase.changes == 4  # every third of twelve steps


def test_loaded_weights_do_not_show_where_the_mask_is_closed() -> None:
    model, selection, trainer = wrapped()
    trainer.fit(taught(1000), None, [Grow(selection, 1)])
    expected = selection.stores[0].served()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    (name,) = (key for key in state if key.endswith("store.weight"))
    state[name][~selection.stores[0].mask] = 7.0
    model.load_state_dict(state)
    assert torch.equal(model.layer.all_vectors(0), expected)
    assert not expected[~selection.stores[0].mask].any()


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
def test_without_changes_it_is_training_under_the_first_mask(gradient: str) -> None:
    train = TRAIN.model_copy(update={"embedding_gradient": gradient, "max_epochs": 2})
    still, _, trainer = wrapped(train, swap=0.0)
    trainer.fit(taught(1000), None, [Grow(_, 2)])
    fixed, selection, trainer = wrapped(train)
    selection.first_mask(torch.Generator().manual_seed(3))  # what the phase draws from seed 3
    trainer.fit(taught(1000), None, [Phase("train", 2)])
    for key, value in fixed.state_dict().items():
        torch.testing.assert_close(still.state_dict()[key], value, msg=key)
    assert fixed.layer.all_vectors(0).any()


def overlap(selection: Dsl) -> float:
    """Share of the teacher's entries that the mask has."""
    return float(selection.stores[0].mask[teacher() != 0].float().mean())


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
def test_a_sparse_teacher_is_found(gradient: str) -> None:
    train = TRAIN.model_copy(update={"embedding_gradient": gradient})
    _, moving, trainer = wrapped(train, every=None)
    rows, valid = taught(), taught(4000, 2)
    first = trainer.fit(rows, valid, moving.phases()).phases["train"]
    _, fixed, trainer = wrapped(train, swap=0.0)
    second = trainer.fit(rows, valid, fixed.phases()).phases["train"]
    assert overlap(fixed) < 0.4  # a quarter, by chance
    assert overlap(moving) > 0.8
    assert max(e["auc"] for e in first) > max(e["auc"] for e in second) + 0.05


def test_gain_sums_over_steps_and_in_the_paper_holds_the_last_batch() -> None:
    """Ten rows look up id 0, ten look up id 1, one batch each; no change comes in between."""
    ids = torch.tensor([0] * 10 + [1] * 10).unsqueeze(1)
    rows = MemoryRows(ids=ids, floats=torch.ones(20, DIM), label=torch.ones(20))
    halves = [rows[:10], rows[10:]]
    rows.batches = lambda *_, **__: (  # type: ignore[method-assign]
        pair for half in halves for pair in half.batches(10)
    )
    train = TRAIN.model_copy(update={"batch_size": 10})
    for paper, first_row in ((False, True), (True, False)):
        _, selection, trainer = wrapped(train, every=50, paper=paper)
        phase = Grow(selection, 1)
        trainer.fit(rows, None, [phase])
        assert bool(phase.gains[0][0].all()) is first_row  # masked entries, too
        assert bool(phase.gains[0][1].all())
        assert not phase.gains[0][2:].any()


def test_the_paper_leaves_the_state_of_pruned_weights() -> None:
    noted = []

    class Looks(Grow):
        def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
            loss = super().step(loop, step, batch, target)
            store = self._selection.stores[0]
            tensors, _ = loop._optimizers.state()  # type: ignore[attr-defined]
            (moment,) = (v for k, v in tensors.items() if k.endswith("weight:exp_avg"))
            noted.append(bool(moment[~store.mask].any()))
            assert not store.weight[~store.mask].any()
            return loss

    _, selection, trainer = wrapped(paper=True)
    trainer.fit(taught(1000), None, [Looks(selection, 1)])
    assert all(noted)


def test_magnitude_start_takes_the_largest() -> None:
    model, selection, _ = wrapped(start="magnitude")
    sizes = selection.stores[0].weight.detach().abs().clone()
    selection.first_mask(torch.Generator().manual_seed(0))
    mask = selection.stores[0].mask
    assert int(mask.sum()) == round(KEEP * VALUES * DIM)
    assert sizes[mask].min() > sizes[~mask].max()
    assert model.layer.all_vectors(0)[~mask].eq(0).all()
