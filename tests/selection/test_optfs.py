"""OptFS on a log whose useful values are known, and its parts by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from pydantic import ValidationError

from recsys.selection.gates import ValueGates
from recsys.selection.optfs import OptFSConfig, Search
from recsys.testing.rows import MemoryRows
from recsys.types import InputError

SEARCH: dict[str, Any] = {"method": "optfs", "strength": 0.1, "search_epochs": 6}


@pytest.fixture(scope="module")
def full() -> planted.Run:
    return planted.run().fit()


@pytest.fixture(scope="module")
def selected() -> planted.Run:
    return planted.run(SEARCH).fit()


def test_useless_values_close_and_useful_ones_stay(
    full: planted.Run, selected: planted.Run
) -> None:
    assert selected.useless_closed() > 0.8
    assert selected.useful_kept() > 0.9
    assert selected.auc() > full.auc() - 0.002


def test_more_strength_closes_more_and_none_closes_almost_nothing(selected: planted.Run) -> None:
    ratios = []
    for strength in (0.0, 0.03, 0.1, 0.2, 0.3):
        run = planted.run({**SEARCH, "strength": strength})
        if strength == SEARCH["strength"]:
            run = selected
        else:
            run.trainer.fit(planted.log(8000, 1), None, run.selection.phases()[:1])
        ratios.append(float(run.selection.chosen()[0].float().mean()))
    assert ratios[0] > 0.98
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] < 0.5


def test_gates_are_exactly_one_at_the_start() -> None:
    """Bit for bit: the logits are those of the model without selection."""
    plain, gated = planted.run(), planted.run(SEARCH)
    batch, _ = next(planted.log(500, 3).batches(500))
    assert torch.equal(plain.model(batch), gated.model(batch))
    assert all((gate.factors() == 1).all() for gate in gated.selection.gates)
    for factor in (3, 500, 65537):  # whatever part of a vector register is left over
        assert (ValueGates(factor, open_factor=1.0).factors() == 1).all()


def test_temperature_rises_geometrically_to_gamma() -> None:
    run = planted.run({**SEARCH, "temperature": 81.0, "search_epochs": 5})
    found = run.trainer.fit(planted.log(600, 1), planted.log(300, 2), run.selection.phases()[:1])
    trace = [entry["selection/temperature"] for entry in found.phases["search"]]
    assert trace == pytest.approx([1.0, 3.0, 9.0, 27.0, 81.0], rel=1e-6)


@pytest.mark.parametrize(("paper", "open_factor"), [(False, 1.0), (True, 1 / 0.6224593312018546)])
def test_gates_are_fixed_and_binary_in_the_retrain(paper: bool, open_factor: float) -> None:
    strength = 1e-3 if paper else 0.1
    run = planted.run({**SEARCH, "strength": strength, "paper": paper}).fit()
    gate = run.selection.gates[0]
    gate.logits.grad = None  # of the search
    factors = gate.factors().flatten()
    assert 0 < (factors == 0).sum() < len(factors)
    assert torch.unique(factors).tolist() == pytest.approx([0.0, open_factor], rel=1e-6)
    batch, target = next(planted.log(300, 3).batches(300))
    torch.nn.functional.binary_cross_entropy_with_logits(run.model(batch), target.label).backward()
    assert gate.logits.grad is None


@pytest.mark.parametrize("rewind", [0, 2])
def test_rewind_is_bit_exact(rewind: int) -> None:
    """The weights at the start of the retrain are those at the start of ``rewind_epoch``, closed
    rows apart, which are zero."""
    config = {**SEARCH, "search_epochs": 4, "rewind_epoch": rewind}
    run = planted.run(config)
    search, retrain = run.selection.phases()
    before: dict[str, torch.Tensor] = {}

    class Noted(Search):
        def start_epoch(self, loop: Any, epoch: int) -> None:
            super().start_epoch(loop, epoch)
            if epoch == rewind:
                before.update({k: v.clone() for k, v in loop.model.state_dict().items()})

    search.__class__ = Noted
    retrain.max_epochs = 0
    run.trainer.fit(planted.log(8000, 1), None, [search, retrain])
    closed = ~run.selection.kept()[0]
    assert closed.any()
    for name, value in run.model.state_dict().items():
        if ".gate." in name:
            continue
        expected = before[name].clone()
        if name.endswith("store.weight"):
            assert not value[closed].any()
            expected[closed] = 0
        assert torch.equal(value, expected), name


def test_closed_rows_stay_zero_and_do_not_matter() -> None:
    """Neither gradient, L2 nor Adam moves what is closed, in dense and in sparse tables."""
    for mode, gradient in (("all_rows", "dense"), ("decoupled", "dense"), ("decoupled", "sparse")):
        train = planted.TRAIN.model_copy(
            update={
                "embedding_l2": planted.TRAIN.embedding_l2.model_copy(
                    update={"mode": mode, "value": 0.1}
                ),
                "embedding_gradient": gradient,
                "max_epochs": 2,
                "clip_norm": 1.0,
            }
        )
        run = planted.run(SEARCH, train=train).fit()
        closed = ~run.selection.kept()[0]
        assert closed.any()
        for layer in run.selection.layers:
            assert not layer.tables[0].weight[closed].any()
            assert not layer.all_vectors(0)[closed[: planted.VALUES]].any()


def unseen(rows: MemoryRows) -> MemoryRows:
    """Value 7 of the first field never occurs."""
    return replace(rows, ids=torch.where(rows.ids == 7, 6, rows.ids))


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
@pytest.mark.parametrize("batch_size", [50, 1000])
def test_all_rows_feel_the_penalty(batch_size: int, gradient: str) -> None:
    """A row that no batch holds falls by the whole ``gate_step`` an epoch, for any number of steps
    and any strength, also where tables are trained row-sparse."""
    l2 = planted.TRAIN.embedding_l2.model_copy(update={"value": 0.0})
    train = planted.TRAIN.model_copy(
        update={"embedding_gradient": gradient, "embedding_l2": l2, "batch_size": batch_size}
    )
    for strength in (0.001, 1.0):
        config = {**SEARCH, "search_epochs": 3, "gate_step": 0.1, "strength": strength}
        run = planted.run({**config, "temperature": 1.001}, train=train)
        run.trainer.fit(unseen(planted.log(4000, 1)), None, run.selection.phases()[:1])
        logit = run.selection.gates[0].logits.detach()[7]
        assert float(logit) == pytest.approx(0.5 - 3 * 0.1, abs=5e-3)


def test_paper_penalty_by_hand() -> None:
    """lambda * sum sigmoid(tau w) through Adam (eps 1e-8) at the rate of the run, one step."""
    strength = 1e-8
    run = planted.run({**SEARCH, "strength": strength, "paper": True})
    search = run.selection.phases()[0]
    search.max_epochs = 1
    run.trainer.fit(unseen(planted.log(200, 1)), None, [search])
    slope = 0.6224593312018546 * (1 - 0.6224593312018546)
    grad = strength * slope
    step = planted.TRAIN.learning_rate * grad / (grad + 1e-8)
    moved = 0.5 - float(run.selection.gates[0].logits.detach()[7])
    assert moved == pytest.approx(step, rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": 0.1, "search_epochs": 1}, "greater than or equal to 2"),
        ({"strength": 0.1, "search_epochs": 3, "rewind_epoch": 3}, "never comes"),
        ({"strength": 0.1, "paper": True, "gate_step": 1.0}, "no meaning with paper"),
        ({"strength": -0.1}, "greater than or equal to 0"),
        ({"strength": 0.1, "temperature": 1.0}, "greater than 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptFSConfig(method="optfs", **settings)


def test_a_search_that_closes_everything_says_so() -> None:
    with pytest.raises(InputError, match=r"closed every value; lower selection\.strength"):
        planted.run({**SEARCH, "strength": 50.0}).fit(planted.log(2000, 1))


def test_pictures_and_traces(selected: planted.Run, tmp_path: Path) -> None:
    assert selected.result is not None
    assert list(selected.result.phases) == ["search", "retrain"]
    kept = [entry["selection/kept_ratio"] for entry in selected.result.phases["search"]]
    assert len(kept) == 6
    assert kept[-1] == pytest.approx(float(selected.selection.kept()[0].float().mean()))
    figures = selected.selection.phases()[0].end(selected.trainer)
    figures["gates"].savefig(tmp_path / "gates.png")
    assert (tmp_path / "gates.png").stat().st_size > 5000
