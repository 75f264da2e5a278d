"""The torchrec store takes the same steps as the torch store, and leaves no trace when exported."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from embedding_cases import build, encoded
from torch import nn

from recsys.settings import TrainConfig
from recsys.training.optimizers import Optimizers, build_optimizers
from recsys.types import Batch, FieldSpec, InputError

pytest.importorskip("torchrec")

FIELDS = (
    FieldSpec("a", "categorical", num_ids=10),
    FieldSpec("b", "categorical", shares="a", num_ids=10),
    FieldSpec("c", "categorical", num_ids=300),
)


def _trained(store: str, optimizer: str, tree: dict[str, Any]) -> tuple[nn.Module, Optimizers]:
    train = {"store": store, "embedding_optimizer": optimizer, "learning_rate": 0.1}
    _, layers = build(tree, FIELDS, **train)
    layer = layers["main"]
    optimizers = build_optimizers(layer, TrainConfig(**train))
    made = torch.Generator().manual_seed(5)
    for step in range(2):
        rows = torch.randint(0, 10, (16, 3), generator=made)  # duplicates within and across fields
        goal = torch.randn(16, 3, 16, generator=made)
        batch = Batch(rows, torch.zeros(16, 0), [], torch.zeros(16, 0).long())
        optimizers.set_lr_scale(1.0 - 0.5 * step)
        optimizers.zero_grad()
        (layer(batch) - goal).square().sum().backward()
        optimizers.step()
    return layer, optimizers


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
def test_one_step_is_the_same(optimizer: str) -> None:
    tree = {"method": "full", "init_std": 0.1}
    ours, our_state = _trained("torch", optimizer, tree)
    theirs, their_state = _trained("torchrec", optimizer, tree)
    assert theirs.tables[0].fused
    assert not ours.tables[0].fused
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    start = build(tree, FIELDS)[1]["main"].tables[0].weight
    assert (start - ours.tables[0].weight).abs().max() > 0.01
    sums = [v.flatten() for k, v in our_state.state()[0].items() if k.endswith(":sum")]
    fused = [v.flatten() for v in their_state.state()[0].values()]
    assert len(sums) == len(fused) == (optimizer != "sgd")
    for a, b in zip(sums, fused, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_blocks_train_alike_and_their_zero_row_stays() -> None:
    tree = {"method": "mixed_dim", "alpha": 0.5, "min_dim": 4, "blocks": {"item": {"cuts": [0.5]}}}
    outs = []
    for store in ("torch", "torchrec"):
        train = {"store": store, "embedding_optimizer": "sgd", "learning_rate": 0.1}
        id_map, layers = build(tree, dims={"main": 16}, **train)
        optimizers = build_optimizers(layers["main"], TrainConfig(**train))
        batch = id_map(encoded(32))
        layers["main"](batch).square().sum().backward()
        optimizers.step()
        outs.append(layers["main"](batch))
        for table in layers["main"].tables:
            assert table.padding < 0 or bool((table.weight[-1] == 0).all())
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-6)


def test_the_final_form_is_plain_and_scripts() -> None:
    layer, _ = _trained("torchrec", "adagrad", {"method": "full"})
    batch = Batch(torch.ones(4, 3).long(), torch.zeros(4, 0), [], torch.zeros(4, 0).long())
    final = layer.finalise()
    assert torch.equal(final(batch), layer(batch))
    assert torch.equal(torch.jit.script(final)(batch), layer(batch))
    assert not final.tables[0].fused


def test_state_goes_round() -> None:
    layer, optimizers = _trained("torchrec", "adagrad", {"method": "full"})
    tensors, plain = optimizers.state()
    kept = {key: value.clone() for key, value in tensors.items()}
    weights = {key: value.clone() for key, value in layer.state_dict().items()}
    again, others = _trained("torchrec", "adagrad", {"method": "full", "init_std": 0.5})
    again.load_state_dict(weights)
    others.load_state(kept, plain)
    batch = Batch(torch.ones(4, 3).long(), torch.zeros(4, 0), [], torch.zeros(4, 0).long())
    for one in (layer, again):
        one(batch).square().sum().backward()
    assert torch.equal(layer.tables[0].weight, again.tables[0].weight)
    assert not torch.equal(layer.tables[0].weight, weights["stores.0.weight"])


def test_what_fbgemm_cannot_do_is_refused() -> None:
    fused = {"store": "torchrec", "embedding_optimizer": "sgd"}
    with pytest.raises(InputError, match="table full is 6 wide"):
        build({"method": "full", "embedding_dim": 6}, FIELDS, {"main": 6}, **fused)
    with pytest.raises(ValueError, match="no Adam on a CPU"):
        TrainConfig(store="torchrec")
    _, layers = build("full", FIELDS, **fused)
    assert [layers[name].tables[0].fused for name in ("main", "first_order")] == [True, False]
    with pytest.raises(InputError, match=r"train\.clip_norm"):
        build_optimizers(layers["main"], TrainConfig(clip_norm=1.0, **fused))


def test_torchrec_is_not_imported_without_need() -> None:
    code = "import sys, recsys.embeddings; print('torchrec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
