"""A search: the same whether or not it was stopped, judged by rows that no step sees."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.embeddings import build_embeddings
from recsys.embeddings.full import FullConfig
from recsys.nas import Evolution, Evolve, SharedNASRec, Space, Supernet
from recsys.settings import TrainConfig
from recsys.testing.rows import MemoryRows
from recsys.training.phase import Loop
from recsys.training.trainer import Interrupted, Trainer
from recsys.types import Batch, FieldSpec, InputError, Metrics, Target

FIELDS = tuple(FieldSpec(name, "categorical", num_ids=6) for name in "abc")
SPACE = Space(blocks=2, widths=(4, 16), counts=(2, 4))
TRAIN = TrainConfig(batch_size=100, learning_rate=0.03)


def rows(count: int = 1500) -> MemoryRows:
    """The label is the XOR of two parities; the third field is noise."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 6, (count, 3))
    label = (values[:, 0] % 2) ^ (values[:, 1] % 2)
    ids = torch.from_numpy(values + np.array([0, 6, 12]))
    return MemoryRows(label=torch.from_numpy(label).float(), ids=ids)


class Stopping(Supernet):
    """Asks to stop before one of its steps."""

    at = -1

    def step(self, loop: Loop, step: int, batch: Batch, target: Target) -> float:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(loop, step, batch, target)


class StoppingEvolve(Evolve):
    """Asks to stop in one of its generations."""

    at = -1

    def end_epoch(self, loop: Loop, epoch: int) -> Metrics:
        if epoch == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().end_epoch(loop, epoch)


def parts(generations: int, population: int) -> tuple[SharedNASRec, Evolution]:
    torch.manual_seed(0)
    table = FullConfig(method="full", embedding_dim=4, init_std=0.3)
    layers = build_embeddings(table, FIELDS, {"embedding": 4}, train=TRAIN)[1]
    shared = SharedNASRec(SPACE, FIELDS, layers["embedding"])
    evolution = Evolution(
        SPACE, population=population, generations=generations, children=3, tournament=3
    )
    return shared, evolution


def search(
    out: Path | None = None, *, step: int = -1, generation: int = -1
) -> tuple[SharedNASRec, Evolution]:
    """A search that is asked to stop at a step or in a generation."""
    shared, evolution = parts(generations=4, population=6)
    supernet = Stopping(shared, 10, share=0.3, warm_up=0.5)
    evolve = StoppingEvolve(shared, evolution, share=0.3, fit_rows=500, judge_rows=500)
    supernet.at, evolve.at = step, generation
    trainer = Trainer(model=shared, config=TRAIN, seed=3, fingerprint="x", out=out)
    trainer.fit(rows(), None, [supernet, evolve])
    return shared, evolution


@pytest.fixture(scope="module")
def whole() -> tuple[SharedNASRec, Evolution]:
    return search()


def test_the_shared_weights_learn_and_networks_are_told_apart(
    whole: tuple[SharedNASRec, Evolution],
) -> None:
    shared, evolution = whole
    assert len(evolution.scores) == 6 + 3 * 3
    assert min(evolution.scores) < 0.5  # the entropy of the label is .69
    assert max(evolution.scores) > 1.4 * min(evolution.scores)
    best = evolution.genomes[evolution.ranked()[0]]
    assert shared.chosen == SPACE.decode(best)


@pytest.mark.parametrize("where", [{"step": 3}, {"step": 40}, {"generation": 0}, {"generation": 2}])
def test_stopped_and_resumed_equals_never_stopped(
    where: dict[str, int], whole: tuple[SharedNASRec, Evolution], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        search(tmp_path, **where)
    shared, evolution = search(tmp_path)
    assert evolution.scores == whole[1].scores
    for ours, theirs in zip(evolution.genomes, whole[1].genomes, strict=True):
        assert (ours == theirs).all()
    for name, weight in shared.state_dict().items():
        assert torch.equal(weight, whole[0].state_dict()[name]), name


def test_judges_are_rows_that_no_step_and_no_fit_sees() -> None:
    """With the labels of the search rows turned around, all that learns stays, and every network
    is judged to be bad."""
    data = rows()
    searched = torch.from_numpy(np.random.default_rng([3, 7]).random(len(data)) < 0.3)
    turned = MemoryRows(label=torch.where(searched, 1 - data.label, data.label), ids=data.ids)
    shared, evolution = _on(data)
    other, judged = _on(turned)
    for name, weight in shared.named_parameters():
        assert torch.equal(weight, dict(other.named_parameters())[name]), name
    assert min(evolution.scores) < 0.5
    assert min(judged.scores) > 0.69


def _on(data: MemoryRows) -> tuple[SharedNASRec, Evolution]:
    shared, evolution = parts(generations=1, population=4)
    phases = [
        Supernet(shared, 10, share=0.3, warm_up=0.5),
        Evolve(shared, evolution, share=0.3, fit_rows=500, judge_rows=500),
    ]
    Trainer(model=shared, config=TRAIN, seed=3).fit(data, None, phases)
    return shared, evolution


def test_a_share_that_leaves_no_rows_is_named() -> None:
    with pytest.raises(InputError, match=r"--share 0\.3: of 1 training rows none is left to"):
        _on(rows(1))


def test_one_label_cannot_be_fitted() -> None:
    data = rows(200)
    one = MemoryRows(label=torch.zeros(len(data)), ids=data.ids)
    with pytest.raises(InputError, match="all have one label; give more rows"):
        _on(one)
