"""AutoInt's own behaviour: equivariance, explanation maps, planted interactions, AutoInt+."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lookup_double import batch, build
from sklearn.metrics import roc_auc_score
from torch import nn

from recsys.layers.dropout import Dropout
from recsys.models import MODELS
from recsys.types import Batch


def autoint(**settings: Any) -> Any:
    return MODELS["autoint"].Config(**settings)


def test_zero_queries_and_keys_give_uniform_maps() -> None:
    model = build(autoint(heads=2)).eval()
    with torch.no_grad():
        for layer in model.interacting:
            layer.weight[:2] = 0
    logits, maps = model.forward_with_attention(batch(3))
    assert len(maps) == 2
    for attention in maps:
        torch.testing.assert_close(attention, torch.full((3, 2, 5, 5), 0.2))
    torch.testing.assert_close(logits, model(batch(3)))


def test_autoint_plus_with_a_silent_mlp_is_autoint() -> None:
    plus = build(autoint(hidden_units=(8, 8))).eval()
    plain = build(autoint(hidden_units=())).eval()
    plain.load_state_dict({k: v for k, v in plus.state_dict().items() if not k.startswith("deep.")})
    data = batch(6)
    assert not torch.equal(plus(data), plain(data))
    with torch.no_grad():
        last = plus.deep[0].layers[-1]
        last.weight.zero_()
        last.bias.zero_()
    assert torch.equal(plus(data), plain(data))


def test_without_residual_and_values_the_logit_is_constant() -> None:
    model = build(autoint(hidden_units=(), residual="none")).eval()
    with torch.no_grad():
        for layer in model.interacting:
            layer.weight[2] = 0
        model.output.bias.fill_(0.5)
    assert model(batch(9)).tolist() == [0.5] * 9


def test_wide_adds_first_order_weights_without_a_bias() -> None:
    model, data = build(autoint(wide=True)).eval(), batch(4)
    first = model.wide[0](data).sum((1, 2))
    with_wide = model(data)
    model.wide = nn.ModuleList()
    torch.testing.assert_close(with_wide - first, model(data))


def test_dropout_reaches_attention_unless_told_otherwise() -> None:
    assert build(autoint(dropout=0.2)).interacting[0].dropout == 0.2
    kept = build(autoint(dropout=0.2, attention_dropout=0.0))
    assert kept.interacting[0].dropout == 0.0
    assert [m.p for m in kept.modules() if isinstance(m, Dropout)] == [0.2] * 3


def test_learns_a_planted_xor_and_its_maps_show_the_pair() -> None:
    torch.manual_seed(0)
    rows, count = 6000, 6
    ids = torch.randint(0, 10, (rows, count))
    labels = ((ids[:, 1] % 2) ^ (ids[:, 4] % 2)).float()
    sizes = {"numerics": 0, "categoricals": count, "dim": 8}

    def auc(config: Any) -> tuple[float, nn.Module, Batch]:
        model = build(config, **sizes)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)

        def part(which: torch.Tensor) -> Batch:
            empty = torch.zeros(len(which), 0)
            return Batch(ids[which], empty, [], empty.long())

        train, test = torch.arange(5000), torch.arange(5000, rows)
        for _ in range(6):
            for which in torch.randperm(len(train)).split(250):
                loss = nn.functional.binary_cross_entropy_with_logits(
                    model(part(which)), labels[which]
                )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            scores = model.eval()(part(test))
        return float(roc_auc_score(labels[test], scores)), model, part(test)

    linear, _, _ = auc(MODELS["lr"].example())
    assert linear == pytest.approx(0.5, abs=0.06)
    area, model, test = auc(autoint(layers=2, heads=2, attention_dim=16, hidden_units=()))
    assert area > 0.95
    with torch.no_grad():
        _, maps = model.forward_with_attention(test)
    mean = maps[0].mean((0, 1))  # (F, F)
    pairs = mean + mean.T
    strength = {(i, j): float(pairs[i, j]) for i in range(count) for j in range(i + 1, count)}
    ranked = sorted(strength, key=lambda pair: -strength[pair])
    assert (1, 4) in ranked[:3], ranked
