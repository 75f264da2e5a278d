"""DNIS: what moves the factors, what is pruned, and that it stays pruned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import planted
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer, IdMap, build_embeddings, full
from recsys.embeddings.store import TorchStore
from recsys.models import MODELS
from recsys.selection.dnis import DNIS, DNISConfig, Search, frequency_blocks, normalised
from recsys.selection.scaled_store import ScaledStore
from recsys.settings import TrainConfig
from recsys.testing.rows import MemoryRows
from recsys.training.trainer import Trainer
from recsys.types import Batch, FieldSpec, InputError, Target

TRAIN = planted.TRAIN.model_copy(update={"max_epochs": 2, "batch_size": 500})
SETTINGS: dict[str, Any] = {"method": "dnis", "keep": 0.3, "search_epochs": 2, "search_share": 0.25}


@dataclass
class Run:
    model: nn.Module
    selection: DNIS
    trainer: Trainer


def run(train: TrainConfig = TRAIN, **settings: Any) -> Run:
    """DeepFM on the planted log, in which value 0 of every field is the most frequent one."""
    torch.manual_seed(5)
    counts = torch.arange(planted.VALUES, 0, -1).numpy()
    fields = tuple(
        FieldSpec(f"f{i}", "categorical", num_ids=planted.VALUES, counts=counts)
        for i in range(planted.FIELDS)
    )
    kind = MODELS["deepfm"]
    deep = kind.Config(hidden_units=(16,), batch_norm=True)
    table = full.FullConfig(method="full", embedding_dim=6, init_std=1e-2)
    _, layers = build_embeddings(table, fields, kind.tables(deep, 6), train=train)
    model = kind(deep, fields, layers)
    config = DNISConfig(**(SETTINGS | settings))
    selection = DNIS(config, list(layers.values()), train)
    return Run(model, selection, Trainer(model=model, config=train, seed=3))


class Recording(Search):
    """Notes the factors and the network around each of the two kinds of steps."""

    def __init__(self, selection: DNIS) -> None:
        super().__init__(selection)
        self.rows: dict[str, list[Tensor]] = {"tables": [], "alpha": []}
        self.moved: dict[str, set[str]] = {"tables": set(), "alpha": set()}

    def step(self, loop: Any, step: int, batch: Batch, target: Target) -> float:
        descend = loop.descend

        def spy(batch: Batch, target: Target, *, only: Any) -> float:
            before = {n: p.detach().clone() for n, p in loop.model.named_parameters()}
            loss: float = descend(batch, target, only=only)
            (name,) = only
            self.rows[name].append(batch.ids)
            for key, value in loop.model.named_parameters():
                if not torch.equal(before[key], value):
                    self.moved[name].add(key)
            return loss

        loop.descend = spy
        try:
            return super().step(loop, step, batch, target)
        finally:
            loop.descend = descend
            for store in self._selection.scaled:
                assert float(store.alpha.detach().min()) >= 0
                assert float(store.alpha.detach().max()) <= 1


def test_factors_move_on_search_rows_alone_and_the_network_never() -> None:
    made = run(alpha_learning_rate=0.3)  # large enough to meet both bounds
    rows = planted.log(2000, 1)
    phase = Recording(made.selection)
    made.trainer.fit(rows, None, [phase])
    assert {n.rsplit(".", 1)[1] for n in phase.moved["alpha"]} == {"alpha"}
    assert phase.moved["tables"]
    assert all("store.weight" in name for name in phase.moved["tables"])
    trained, searched = rows.parted(0.25, seed=3)
    expected = {tuple(r) for r in searched.ids.tolist()}
    seen = torch.cat(phase.rows["alpha"])
    assert {tuple(r) for r in seen.tolist()} <= expected
    assert sum(len(part) for part in phase.rows["tables"]) == 2 * len(trained)
    counted = torch.cat(phase.rows["tables"]).sum()
    assert counted == 2 * trained.ids.sum()
    alphas = torch.cat([store.alpha.detach().flatten() for store in made.selection.scaled])
    assert float(alphas.min()) == 0
    assert float(alphas.max()) == 1


def test_an_empty_search_split_is_an_error() -> None:
    made = run(search_share=1e-9)
    with pytest.raises(InputError, match="none is left to search on"):
        made.trainer.fit(planted.log(50, 1), None, made.selection.phases())


def test_scaling_the_gradient_of_a_block_changes_nothing() -> None:
    """By hand: (1, -3) has the mean absolute value 2; zeros stay zeros."""
    gradient = torch.tensor([[1.0, -3.0], [0.0, 0.0], [2e-7, 2e-7]])
    expected = torch.tensor([[0.5, -1.5], [0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(normalised(gradient), expected)

    def updated(factor: float) -> Tensor:
        made = run(alpha_l1=0.0, alpha_learning_rate=1e-3)
        store = made.selection.scaled[0]

        class Scaled(Search):
            def enter(self, loop: Any) -> None:
                scale = torch.ones_like(store.alpha)
                scale[1] = factor
                store.search(True)
                store.alpha.register_hook(lambda gradient: gradient * scale)  # runs first
                super().enter(loop)

            def step(self, loop: Any, step: int, batch: Batch, target: Target) -> float:
                return super().step(loop, step, batch, target) if step == 0 else 0.0

        made.trainer.fit(planted.log(800, 1), None, [Scaled(made.selection)])
        return store.alpha.detach().clone()

    plain, scaled = updated(1.0), updated(1e3)
    assert float((plain[1] - 1).abs().max()) > 1e-4
    torch.testing.assert_close(plain, scaled)


def test_the_gradient_of_the_penalty_is_normalised_with_the_rest() -> None:
    """A block that no search row meets has the gradient of the L1 term alone: it falls by the rate
    at every step."""
    made = run(alpha_learning_rate=0.01, search_epochs=1)
    ids = torch.tensor([[0, 40, 80]]).expand(2000, 3)  # only values of block 0
    rows = replace(planted.log(2000, 1), ids=ids)
    made.trainer.fit(rows, None, [Search(made.selection)])
    steps = -(-len(rows.parted(0.25, seed=3)[0]) // 500)
    for store in made.selection.scaled:
        left = store.alpha[-1].detach()
        torch.testing.assert_close(left, torch.full_like(left, 1 - 0.01 * steps))


def test_order_of_columns_within_a_block_does_not_matter() -> None:
    """A linear reading of the columns, permuted with them, gives the same loss."""
    torch.manual_seed(0)
    weight, block = torch.randn(7, 4), torch.tensor([0, 0, 1, 1, 1, 0, 1])
    order = torch.tensor([2, 0, 3, 1])
    rows = torch.tensor([[0, 3], [5, 6]])

    def total(order: Tensor) -> Tensor:
        store = ScaledStore(
            store=TorchStore(weight=weight[:, order].clone(), sparse=False), block=block, blocks=2
        )
        alpha = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
        store.alpha.data.copy_(alpha[:, order])
        store.search(True)
        found: Tensor = store(rows).square().sum()
        return found

    torch.testing.assert_close(total(order), total(torch.arange(4)))
    alpha = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
    expected = ((weight * alpha[block])[rows]).square().sum()
    torch.testing.assert_close(total(order), expected)


def test_blocks_are_ranks_of_frequency_over_all_tables() -> None:
    found = frequency_blocks([torch.tensor([5.0, 1.0, 9.0]), torch.tensor([7.0, 1.0])], (0.4, 0.6))
    assert [part.tolist() for part in found] == [[1, 1, 0], [0, 1]]


def latent(count: int, seed: int) -> MemoryRows:
    """The label is the sign of a product of latent vectors for frequent values, else chance.

    Values 0-19 of both fields are frequent and have 8 latent dimensions; 20-39 are noise."""
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(20, 8, generator=draw), torch.randn(20, 8, generator=draw)
    rng = torch.Generator().manual_seed(seed)
    frequent = torch.rand(count, generator=rng) < 0.8
    ids = torch.randint(20, (count, 2), generator=rng)
    logit = 1.5 * (left[ids[:, 0]] * right[ids[:, 1]]).sum(1)
    logit = torch.where(frequent, logit, torch.zeros(count))
    label = torch.rand(count, generator=rng) < torch.sigmoid(logit)
    shift = torch.where(frequent, 0, 20).unsqueeze(1) + torch.tensor([0, 40])
    return MemoryRows(ids=ids + shift, label=label.float())


def test_a_block_of_latent_structure_keeps_more_than_a_block_of_noise() -> None:
    torch.manual_seed(1)
    counts = torch.tensor([4] * 20 + [1] * 20).numpy()
    fields = tuple(FieldSpec(f"f{i}", "categorical", num_ids=40, counts=counts) for i in range(2))
    kind = MODELS["fm"]
    train = TrainConfig(batch_size=500, max_epochs=15, learning_rate=0.02, patience=15)
    settings = kind.Config()
    table = full.FullConfig(method="full", embedding_dim=8, init_std=0.1)
    _, layers = build_embeddings(table, fields, kind.tables(settings, 8), train=train)
    model = kind(settings, fields, layers)
    config = DNISConfig(method="dnis", keep=0.5, blocks=(0.5, 0.5), search_epochs=5)
    selection = DNIS(config, list(layers.values()), train)
    trainer = Trainer(model=model, config=train, seed=3)
    phases = selection.phases()
    trainer.fit(latent(6000, 1), latent(1000, 2), phases[:2])
    wide = next(store for store in selection.scaled if store.weight.size(1) == 8)
    frequent, noise = wide.alpha.detach().mean(1).tolist()
    assert frequent > noise + 0.2
    trainer.fit(latent(6000, 1), latent(1000, 2), phases[2:])
    kept = selection.report()["kept_by_block"]
    assert kept[0] > kept[1] + 0.2


def test_the_target_is_met_and_pruned_weights_stay_zero() -> None:
    """Dense Adam with L2 on all rows, which moves every weight that is not held."""
    made = run()
    masks: list[Tensor] = []
    phases = made.selection.phases()
    close = made.selection.close

    def spy(kept: Any) -> None:
        before = [store.products().clone() for store in made.selection.scaled]
        close(kept)
        for store, old, mask in zip(made.selection.scaled, before, kept, strict=True):
            assert torch.equal(store.weight, old * mask)  # alpha is folded in
            assert torch.equal(store.alpha, torch.ones_like(store.alpha))
        gone = torch.cat([(o.abs())[~m] for o, m in zip(before, kept, strict=True)])
        stay = torch.cat([(o.abs())[m] for o, m in zip(before, kept, strict=True)])
        assert float(gone.max()) <= float(stay.min())
        masks.extend(mask.clone() for mask in kept)

    made.selection.close = spy  # type: ignore[method-assign]
    made.trainer.fit(planted.log(2000, 1), planted.log(500, 2), phases)
    total = sum(store.weight.numel() for store in made.selection.scaled)
    nonzero = sum(int((store.weight != 0).sum()) for store in made.selection.scaled)
    assert abs(nonzero / total - 0.3) <= 1e-3
    for store, mask in zip(made.selection.scaled, masks, strict=True):
        assert not store.weight[~mask].any()
        assert torch.equal(store.mask, mask)
        assert not store.alpha.requires_grad


@pytest.mark.parametrize("budget", ["1KB", "2KB"])
def test_a_budget_is_met_and_used(budget: str) -> None:
    """The bytes of the packed layers, of which tables are the larger part."""
    made = run(keep=None, budget=budget)
    made.trainer.fit(planted.log(1000, 1), None, made.selection.phases())
    report = made.selection.report()
    tables = sum(
        {
            "plain": lambda f: 4 * f["rows"] * f["width"],
            "columns": lambda f: (4 * f["rows"] + 1) * f["columns"],
            "prefix": lambda f: 4 * f["floats"] + 13 * f["ranges"],
            "csr": lambda f: 5 * f["nonzero"] + 4 * (f["rows"] + 1),
        }[f["kind"]](f)
        for layer in report["forms"]
        for f in layer
    )
    limit = {"1KB": 1000, "2KB": 2000}[budget]
    layers = made.selection.layers
    made.selection.pack(made.model, IdMap(row_map=layers[0].row_map, fields=layers[0].fields))
    packed = [m for m in made.model.modules() if isinstance(m, EmbeddingLayer)]
    used = sum(layer.memory().stored_bytes for layer in packed)
    assert 0 < tables <= used <= limit
    assert report["parameters_kept"] > limit / 20  # 20 bytes a weight would be a waste


def test_a_budget_that_nothing_fits_is_an_error() -> None:
    made = run(keep=None, budget="10B")
    with pytest.raises(InputError, match=r"selection\.budget 10B is too small"):
        made.trainer.fit(planted.log(600, 1), None, made.selection.phases())


def test_finalised_tables_equal_masked_ones_for_all_ids() -> None:
    made = run()
    made.trainer.fit(planted.log(1000, 1), None, made.selection.phases())
    for layer in made.selection.layers:
        final = layer.finalise()
        for f in range(planted.FIELDS):
            assert torch.equal(final.all_vectors(f), layer.all_vectors(f))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": None}, "either keep"),
        ({"budget": "1MB"}, "either keep"),
        ({"blocks": (0.5, 0.4)}, "sum to 0.9"),
        ({"keep": None, "budget": "much"}, "no size"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DNISConfig(**(SETTINGS | settings))


def test_open_ids_are_refused() -> None:
    fields = (FieldSpec("f", "categorical", num_ids=None),)
    layer = type("Layer", (), {"fields": fields, "tables": [1]})()
    with pytest.raises(InputError, match="open ids are not counted"):
        DNIS(DNISConfig(**SETTINGS), [layer], TRAIN)  # type: ignore[list-item]
