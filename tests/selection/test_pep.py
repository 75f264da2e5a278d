"""PEP: thresholds that are alive, a mask that comes from them, and the lottery ticket."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import planted
import pytest
import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer, build_embeddings, full
from recsys.embeddings.store import TorchStore
from recsys.models import MODELS
from recsys.selection.pep import PEP, PEPConfig, Search
from recsys.selection.retrain import Snapshot
from recsys.selection.threshold_store import ThresholdStore, soft_threshold
from recsys.settings import TrainConfig
from recsys.training.trainer import Trainer
from recsys.types import InputError

GRANULARITIES = ("global", "dimension", "feature", "feature_dimension")
TRAIN = planted.TRAIN.model_copy(update={"max_epochs": 2, "batch_size": 500, "weight_decay": 0.1})
SETTINGS: dict[str, Any] = {"method": "pep", "keep": 0.3, "threshold_step": 4.0}


@dataclass
class Run:
    model: nn.Module
    selection: PEP
    trainer: Trainer


def run(train: TrainConfig = TRAIN, **settings: Any) -> Run:
    torch.manual_seed(5)
    kind = MODELS["deepfm"]
    deep = kind.Config(hidden_units=(16,), batch_norm=True)
    table = full.FullConfig(method="full", embedding_dim=6, init_std=1e-2)
    fields = planted.fields()
    _, layers = build_embeddings(table, fields, kind.tables(deep, 6), train=train)
    model = kind(deep, fields, layers)
    selection = PEP(PEPConfig(**(SETTINGS | settings)), list(layers.values()), train)
    return Run(model, selection, Trainer(model=model, config=train, seed=3))


def test_soft_threshold_and_its_slopes_by_hand() -> None:
    """sigmoid(0) = .5 with slope .25; an open weight passes its gradient on, a closed one none."""
    values = torch.tensor([0.7, -0.9, 0.4, 0.0], requires_grad=True)
    logits = torch.zeros(4, requires_grad=True)
    seen = soft_threshold(values, logits)
    torch.testing.assert_close(seen, torch.tensor([0.2, -0.4, 0.0, 0.0]))
    seen.sum().backward()
    assert values.grad is not None
    assert logits.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(logits.grad, torch.tensor([-0.25, 0.25, 0.0, 0.0]))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gathered_rows_are_those_of_the_thresholded_table(granularity: str) -> None:
    made = run(granularity=granularity)
    for store in made.selection.thresholded:
        shape = {
            "global": (1, 1),
            "dimension": (1, store.weight.size(1)),
            "feature": (120, 1),
            "feature_dimension": tuple(store.weight.shape),
        }[granularity]
        assert store.logits.shape == shape
        store.logits.data.copy_(-5 + torch.randn(shape, generator=torch.manual_seed(1)))
        store.search(True)
        rows = torch.tensor([[3, 119], [0, 3]], dtype=torch.int32)
        threshold = 1 / (1 + torch.exp(-store.logits.detach()))
        weight = store.weight.detach()
        expected = torch.where(
            weight > threshold,
            weight - threshold,
            torch.where(weight < -threshold, weight + threshold, torch.zeros(())),
        )
        torch.testing.assert_close(store(rows), expected[rows.long()])
        torch.testing.assert_close(store.served(), expected)
        assert torch.jit.script(store)(rows).equal(store(rows))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_thresholds_are_alive_at_the_first_step(granularity: str) -> None:
    """By the data alone, without the pull: at -150 the gradients would be exactly 0."""

    def gradients(start: float) -> list[Tensor]:
        made = run(granularity=granularity)
        for store in made.selection.thresholded:
            store.logits.data.fill_(start)
            store.search(True)
        batch, target = next(planted.log(500, 1).batches(500))
        made.trainer._cross_entropy(batch, target).backward()
        found = [store.logits.grad for store in made.selection.thresholded]
        return [grad for grad in found if grad is not None]

    made = run(granularity=granularity)
    assert all(float(store.logits.min()) == -15 for store in made.selection.thresholded)
    alive = gradients(-15.0)
    assert len(alive) == 2
    assert all(bool((grad != 0).any()) for grad in alive)
    assert not any(bool(grad.any()) for grad in gradients(-150.0))


def test_thresholds_have_no_weight_decay_and_rise_by_the_step() -> None:
    """Before the data can resist, S steps of rate step / S carry every threshold up by the step;
    with any decay towards 0 the network's 0.1 would show."""
    made = run(search_epochs=1, threshold_step=1.0)
    made.trainer.fit(planted.log(2000, 1), None, [Search(made.selection, Snapshot(made.selection))])
    for store in made.selection.thresholded:
        torch.testing.assert_close(
            store.logits.detach(), torch.full(store.logits.shape, -14.0), atol=0.05, rtol=0
        )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("keep", [0.5, 0.1])
def test_the_target_is_reached_and_the_mask_comes_from_the_thresholds(
    granularity: str, keep: float
) -> None:
    made = run(granularity=granularity, keep=keep)
    selection = made.selection
    phases = selection.phases()
    result = made.trainer.fit(planted.log(2000, 1), planted.log(500, 2), phases[:1])
    densities = [point["selection/kept_ratio"] for point in result.phases["search"]]
    assert selection.reached
    assert len(densities) < selection.config.search_epochs  # the search ends by itself
    assert densities[0] > 0.9
    assert densities[-1] <= keep < densities[-2]
    assert all(b <= a + 0.05 for a, b in pairwise(densities))

    chosen = selection.chosen()
    total = sum(mask.numel() for mask in chosen)
    assert abs(sum(int(mask.sum()) for mask in chosen) / total - keep) <= 1e-3
    for mask, store in zip(chosen, selection.thresholded, strict=True):
        opened = store.served() != 0
        assert not bool((opened & ~mask).any())  # nothing that is open is closed


def test_the_retrain_starts_from_the_initial_weights_bit_for_bit() -> None:
    made = run()
    initial = {name: value.clone() for name, value in made.model.state_dict().items()}
    phases = made.selection.phases()
    start: dict[str, Tensor] = {}
    enter = phases[1].enter

    def spy(loop: Any) -> None:
        start.update({name: value.clone() for name, value in loop.model.state_dict().items()})
        enter(loop)

    phases[1].enter = spy  # type: ignore[method-assign]
    made.trainer.fit(planted.log(2000, 1), planted.log(500, 2), phases)
    masks = {name.removesuffix("mask"): mask for name, mask in start.items() if "mask" in name}
    assert len(masks) == 2
    for name, value in start.items():
        if name.endswith("store.weight"):
            mask = masks[name.removesuffix("store.weight")]
            assert torch.equal(value, initial[name] * mask)
        elif not name.endswith(("mask", "logits")):
            assert torch.equal(value, initial[name]), name

    for store in made.selection.thresholded:
        assert not store.weight[~store.mask].any()  # Adam and L2 on all rows cannot move them
        assert not store.logits.requires_grad
    total = sum(store.mask.numel() for store in made.selection.thresholded)
    nonzero = sum(int((store.weight != 0).sum()) for store in made.selection.thresholded)
    assert abs(nonzero / total - 0.3) <= 1e-3
    layers = [layer for layer in made.model.modules() if isinstance(layer, EmbeddingLayer)]
    assert len(layers) == 2
    for layer in layers:
        final = layer.finalise()
        for f in range(planted.FIELDS):
            assert torch.equal(final.all_vectors(f), layer.all_vectors(f))


def test_useful_values_keep_more_weights_than_useless_ones() -> None:
    made = run(granularity="feature", keep=0.5, threshold_step=2.0)
    made.trainer.fit(planted.log(8000, 1), planted.log(2000, 2), made.selection.phases())
    kept = torch.cat([store.mask for store in made.selection.thresholded], 1).float().mean(1)
    useful = float(kept[planted.useful()].mean())
    useless = float(kept[~planted.useful()].mean())
    assert useful > useless + 0.3


def test_a_search_that_ends_early_says_so() -> None:
    made = run(search_epochs=1, threshold_step=0.5)
    made.trainer.fit(planted.log(1000, 1), None, made.selection.phases())
    report = made.selection.report()
    assert report["reached"] is False
    assert abs(report["parameters_kept"] / report["parameters"] - 0.3) <= 1e-3


def test_zero_rows_are_never_kept() -> None:
    store = ThresholdStore(
        store=TorchStore(weight=torch.ones(3, 2), sparse=False, zero_row=True), shape=[3, 2]
    )
    made = run(keep=0.999)
    made.selection.layers[1].stores[0] = store
    assert made.selection.margins()[-1][2].tolist() == [-torch.inf, -torch.inf]


def test_tables_that_move_in_the_backward_pass_are_refused() -> None:
    _, layers = build_embeddings(
        full.FullConfig(method="full", embedding_dim=6), planted.fields(), {"main": 6}, train=TRAIN
    )
    (layer,) = layers.values()
    layer.tables[0].fused = True
    with pytest.raises(InputError, match=r"set train\.store torch"):
        PEP(PEPConfig(**SETTINGS), [layer], TRAIN)
