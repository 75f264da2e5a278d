"""Whole runs of OptEmbed on logs whose truth is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from pydantic import ValidationError

from recsys.embeddings import build_embeddings, full
from recsys.models import MODELS
from recsys.selection.optembed import OptEmbed, OptEmbedConfig
from recsys.selection.optembed_phases import Evolve, Supernet
from recsys.selection.optembed_store import SupernetStore
from recsys.settings import TrainConfig
from recsys.testing.rows import MemoryRows
from recsys.training.trainer import Trainer
from recsys.types import Batch, FieldSpec, InputError, Target

SEARCH: dict[str, Any] = {"method": "optembed", "keep": 0.4, "search_epochs": 8, "generations": 6}


@pytest.fixture(scope="module")
def selected() -> planted.Run:
    return planted.run(SEARCH).fit()


def chosen(run: planted.Run) -> OptEmbed:
    assert isinstance(run.selection, OptEmbed)
    return run.selection


# -- whole runs --------------------------------------------------------------------------------


def test_useless_values_close_and_useful_ones_stay(selected: planted.Run) -> None:
    assert selected.useful_kept() > 0.95
    assert selected.useless_closed() > 0.7
    assert selected.auc() > planted.run().fit().auc() - 0.005


def test_reported_sizes_are_counted_ones(selected: planted.Run) -> None:
    report = selected.selection.report()
    counted = sum(int((store.served() != 0).sum()) for store in chosen(selected).stores)
    formula = sum(part["rows_kept"] * part["width"] for part in report["kept_by_feature"])
    assert report["parameters"] == planted.FIELDS * planted.VALUES * 7
    assert report["parameters_kept"] == counted == formula
    assert counted <= 0.4 * report["parameters"]
    assert report["rows_kept"] == int(selected.selection.kept()[0].sum())


def test_pruned_weights_stay_zero_and_widths_are_prefixes(selected: planted.Run) -> None:
    for store in chosen(selected).stores:
        assert not store.mask.all()
        assert not store.weight[~store.mask].any()
        kept = store.mask[store.mask.any(1)]
        assert torch.equal(kept, kept.cummin(1).values)


def test_best_candidate_scores_what_was_recorded_on_the_search_rows() -> None:
    """And every epoch of the trace is at least the one before."""
    run = planted.run(SEARCH)
    search, evolve, _ = run.selection.phases()
    assert isinstance(evolve, Evolve)
    result = run.trainer.fit(planted.log(4000, 1), planted.log(1000, 2), [search, evolve])
    evolution = evolve.evolution
    best = evolution.best
    masks = [store.mask.clone() for store in chosen(run).stores]
    for store in chosen(run).stores:
        store.mask.fill_(True)
    assert evolve.score(run.trainer, evolution.genomes[best]) == evolution.scores[best]
    for store, mask in zip(chosen(run).stores, masks, strict=True):
        assert torch.equal(store.mask, mask)
    trace = [entry["selection/search_auc"] for entry in result.phases["evolution"]]
    assert len(trace) == SEARCH["generations"]
    assert trace == sorted(trace)
    assert trace[-1] == evolution.scores[best]


@pytest.mark.parametrize("died_in", [0, 3])
def test_an_evolution_that_died_goes_on_exactly(died_in: int, tmp_path: Path) -> None:
    rows = planted.log(1000, 1)
    train = planted.TRAIN.model_copy(update={"max_epochs": 2})
    settings = {**SEARCH, "search_epochs": 2}
    whole = planted.run(settings, train=train).fit(rows)

    class Killed(RuntimeError):
        pass

    died = planted.run(settings, train=train, out=tmp_path)
    phases = died.selection.phases()
    generation = phases[1].end_epoch

    def end_epoch(loop: Any, epoch: int) -> Any:
        if epoch == died_in:
            raise Killed
        return generation(loop, epoch)

    phases[1].end_epoch = end_epoch  # type: ignore[method-assign]
    with pytest.raises(Killed):
        died.trainer.fit(rows, planted.log(4000, 2), phases)
    resumed = planted.run(settings, train=train, out=tmp_path)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.add_(1.0)
    resumed.fit(rows)
    assert whole.result is not None
    assert resumed.result is not None
    assert resumed.result.phases == whole.result.phases
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


class Watched(MemoryRows):
    """Notes which rows are read, by what reads them."""

    read: list[tuple[str, torch.Tensor]]

    def parted(self, share: float, *, seed: int) -> Any:
        first, second = super().parted(share, seed=seed)
        for part, name in ((first, "rest"), (second, "search")):
            part.__class__ = Watched
            part.fingerprint, part.read = name, self.read
        return first, second

    def batches(self, *args: Any, **options: Any) -> Iterator[tuple[Batch, Target]]:
        self.read.append((self.fingerprint, torch.is_grad_enabled()))
        return super().batches(*args, **options)


def test_supernet_steps_on_the_rest_and_evolution_reads_the_search_rows_alone() -> None:
    rows = planted.log(1000, 1)
    train = Watched(ids=rows.ids, label=rows.label, fingerprint="whole")
    train.read = []
    run = planted.run({**SEARCH, "generations": 2, "search_epochs": 3})
    supernet_, evolve, retrain = run.selection.phases()
    assert isinstance(supernet_, Supernet)
    counts = []
    for phase, epochs in ((supernet_, 3), (evolve, 2), (retrain, 1)):
        phase.max_epochs = epochs
    run.trainer.fit(train, None, [supernet_])
    counts.append({name for name, _ in train.read})
    train.read.clear()
    run.trainer.fit(train, None, [evolve])
    counts.append({name for name, _ in train.read})
    train.read.clear()
    run.trainer.fit(train, None, [retrain])
    counts.append({name for name, _ in train.read})
    assert counts == [{"rest"}, {"search"}, {"whole"}]
    rest, search = supernet_.parts(run.trainer)
    assert len(rest) + len(search) == 1000
    assert 60 < len(search) < 140


def test_gates_and_widths_learn_under_row_sparse_tables_too() -> None:
    l2 = planted.TRAIN.embedding_l2.model_copy(update={"mode": "decoupled", "value": 0.1})
    train = planted.TRAIN.model_copy(
        update={"embedding_l2": l2, "embedding_gradient": "sparse", "max_epochs": 3}
    )
    run = planted.run({**SEARCH, "generations": 2}, train=train).fit()
    assert run.useful_kept() > run.selection.kept()[0].float().mean() + 0.1
    for store in chosen(run).stores:
        assert not store.weight[~store.mask].any()


def test_rows_that_training_never_used_close() -> None:
    """They keep their start in a row-sparse table; here their counts say so."""
    counts = np.full(planted.VALUES, 5)
    counts[30:] = 0
    fields = tuple(
        FieldSpec(f"f{i}", "categorical", num_ids=planted.VALUES, counts=counts) for i in range(3)
    )
    made = wrapped(fields, planted.TRAIN, SEARCH)
    assert made.open_rows()[0].view(3, -1).sum(1).tolist() == [30, 30, 30]
    assert (
        wrapped(fields, planted.TRAIN, {"method": "optembed", "paper": True}).open_rows()[0].all()
    )


def wrapped(fields: Any, train: TrainConfig, settings: dict[str, Any]) -> OptEmbed:
    torch.manual_seed(0)
    table = full.FullConfig(method="full", embedding_dim=6, init_std=1e-2)
    _, layers = build_embeddings(table, fields, {"vectors": 6, "first": 1}, train=train)
    return OptEmbed(OptEmbedConfig(**settings), list(layers.values()), train)


def test_a_budget_below_width_one_closes_the_rows_of_least_margin() -> None:
    made = wrapped(planted.fields(), planted.TRAIN, {**SEARCH, "keep": 0.1})  # 840 floats
    margins = made.gates[0].margins()
    rows = made.affordable()[0]
    assert int(rows.sum()) == 42  # 84 floats: one of each layer
    assert margins[rows].min() >= margins[~rows].max()
    space = made.space([rows])
    assert space.cost(space.even()) == 84


def test_paper_leaves_first_order_weights_alone_and_knows_no_budget() -> None:
    run = planted.run({"method": "optembed", "paper": True, "generations": 2, "search_epochs": 2})
    run.fit(planted.log(2000, 1))
    wide, narrow = chosen(run).stores
    assert isinstance(wide, SupernetStore)
    assert not isinstance(narrow, SupernetStore)
    assert narrow.mask.all()
    assert not wide.mask.all()
    assert chosen(run).space(chosen(run).open_rows()).most is None


# -- widths follow the rank of what a field says -----------------------------------------------


RANKS = (1, 8)
IDS = 30


def ranked(count: int, seed: int) -> MemoryRows:
    """The logit is <u_a, v_b> of rank 1 plus <u_c, v_d> of rank 8; a quarter of the ids of every
    field is rare and says nothing."""
    rng = np.random.default_rng(0)
    logit = np.zeros(count)
    draw = np.random.default_rng(seed)
    often = int(0.75 * IDS)
    rare = draw.random((count, 4)) < 0.01
    ids = np.where(rare, draw.integers(often, IDS, (count, 4)), draw.integers(0, often, (count, 4)))
    for pair, rank in enumerate(RANKS):
        # no entry near zero: every frequent id says something
        left, right = rng.choice([-1, 1], (2, IDS, rank)) * rng.uniform(0.7, 1.7, (2, IDS, rank))
        left, right = left * 1.3 / rank**0.25, right * 1.3 / rank**0.25
        left[often:], right[often:] = 0, 0
        logit += (left[ids[:, 2 * pair]] * right[ids[:, 2 * pair + 1]]).sum(1)
    label = draw.random(count) < 1 / (1 + np.exp(-logit))
    return MemoryRows(
        ids=torch.from_numpy(ids + IDS * np.arange(4)), label=torch.from_numpy(label).float()
    )


def test_a_field_of_one_dimension_gets_a_smaller_width_than_one_of_rank_eight() -> None:
    torch.manual_seed(0)
    train = planted.TRAIN.model_copy(update={"max_epochs": 1, "learning_rate": 1e-2})
    fields = tuple(FieldSpec(name, "categorical", num_ids=IDS) for name in "abcd")
    table = full.FullConfig(method="full", embedding_dim=8, init_std=1e-1)
    kind = MODELS["fm"]
    config = kind.Config()
    _, layers = build_embeddings(table, fields, kind.tables(config, 8), train=train)
    model = kind(config, fields, layers)
    settings = {**SEARCH, "keep": 0.5, "search_epochs": 15, "generations": 12, "search_share": 0.3}
    made = OptEmbed(OptEmbedConfig(**settings), list(layers.values()), train)
    Trainer(model=model, config=train, seed=1).fit(ranked(16000, 1), None, made.phases())
    wide = max(range(2), key=lambda n: made.stores[n].weight.size(1))
    width = {
        part["feature"]: part["width"]
        for part in made.report()["kept_by_feature"]
        if part["layer"] == wide
    }
    assert max(width["a"], width["b"]) < min(width["c"], width["d"])
    rows = made.kept()[0].view(4, IDS)
    often = int(0.75 * IDS)
    assert rows[:, :often].float().mean() > 0.9
    assert rows[:, often:].float().mean() < 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give keep"),
        ({"paper": True, "keep": 0.5}, "give keep"),
        ({"keep": 0.0}, "greater than 0"),
        ({"keep": 0.5, "search_share": 1.0}, "less than 1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptEmbedConfig(method="optembed", **settings)


def test_a_search_split_of_one_label_says_so() -> None:
    rows = planted.log(300, 1)
    with pytest.raises(InputError, match="one label only"):
        planted.run({**SEARCH, "search_epochs": 1}).fit(
            replace(rows, label=torch.zeros_like(rows.label))
        )


def test_pictures(selected: planted.Run) -> None:
    search = selected.selection.phases()[0]
    assert set(search.end(selected.trainer)) == {"margins"}
