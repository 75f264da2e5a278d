"""GDCN, AFM, AFN and FT-Transformer by their equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lookup_double import batch, build
from pydantic import ValidationError

from recsys.models import MODELS
from recsys.types import InputError


def config(name: str, **settings: Any) -> Any:
    return MODELS[name].Config(**settings)


def test_gdcn_structures_by_their_equations() -> None:
    data = batch(5)
    for structure in ("parallel", "stacked"):
        model = build(config("gdcn", structure=structure, layers=2, hidden_units=(8,))).eval()
        x = model.embedding(data).flatten(1)
        crossed = x
        for cross, gate in zip(model.crosses.crosses, model.crosses.gates, strict=True):
            open_ = 1 / (1 + torch.exp(-(crossed @ gate.weight.t())))
            crossed = crossed + x * (crossed @ cross.weight.t() + cross.bias) * open_
        if structure == "parallel":
            top = torch.cat([crossed, model.mlp(x)], 1)
        else:
            top = model.mlp(crossed)
        expected = (top @ model.output.weight.t() + model.output.bias).squeeze(1)
        torch.testing.assert_close(model(data), expected)


def test_afm_by_hand() -> None:
    model, data = build(config("afm", attention_dim=3)).eval(), batch(4)
    hidden, scorer = model.attention[0], model.attention[2]
    with torch.no_grad():
        model.bias.fill_(0.25)
        hidden.bias.uniform_(-1, 1)
        x = model.embedding(data).numpy()
        first = model.first_order(data).numpy()
        w, c = hidden.weight.numpy(), hidden.bias.numpy()
        h, p = scorer.weight.numpy()[0], model.output[1].weight.numpy()[0]
        logits = model(data).numpy()
    for b in range(4):
        pairs = [x[b, i] * x[b, j] for i in range(5) for j in range(i + 1, 5)]
        weights = np.exp([h @ np.maximum(w @ pair + c, 0) for pair in pairs])
        weights /= weights.sum()
        pooled = sum(a * pair for a, pair in zip(weights, pairs, strict=True))
        assert logits[b] == pytest.approx(0.25 + first[b].sum() + p @ pooled, abs=1e-5)


def test_afm_needs_two_fields() -> None:
    with pytest.raises(InputError, match="at least two features"):
        build(config("afm"), numerics=0, categoricals=1)


def test_afm_drops_attention_weights_and_the_pooled_pairs() -> None:
    data = batch(50)
    for settings in ({"attention_dropout": 0.5}, {"dropout": 0.5}):
        model = build(config("afm", **settings)).train()
        assert not torch.equal(model(data), model(data))
        assert torch.equal(model.eval()(data), model(data))


def test_afn_and_afn_plus_by_their_equations() -> None:
    data = batch(6)
    plus = build(config("afn", log_neurons=3, hidden_units=(8,), deep_units=(4,))).eval()
    x, second = plus.embedding(data), plus.deep_embedding[0](data)
    assert not torch.equal(x, second)  # a table of its own
    one = plus.mlp(plus.products(x)).squeeze(1)
    two = plus.deep[0](second.flatten(1)).squeeze(1)
    mix = plus.mix[0]
    expected = mix.weight[0, 0] * one + mix.weight[0, 1] * two + mix.bias
    torch.testing.assert_close(plus(data), expected)
    plain = build(config("afn", log_neurons=3, hidden_units=(8,))).eval()
    state = plus.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith(("deep", "mix"))})
    torch.testing.assert_close(plain(data), one)


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("afn", {"deep_dropout": 0.2}, "deep_units"),
        ("ft_transformer", {"width": 10, "heads": 4}, "multiple of heads"),
        ("gdcn", {"structure": "crossnet_only"}, "structure"),
        ("dlrm", {"bottom_units": []}, "bottom_units"),
    ],
)
def test_configs_that_cannot_work_are_refused(
    name: str, settings: dict[str, Any], part: str
) -> None:
    with pytest.raises(ValidationError, match=part):
        config(name, **settings)


def test_ft_transformer_reads_its_logit_from_the_class_token() -> None:
    model, data = build(config("ft_transformer", width=8, heads=2, blocks=2)).eval(), batch(5)
    x = model.embedding(data)
    projected = x @ model.to_tokens.weight.t() + model.token_bias
    tokens = torch.cat([model.cls.expand(5, 1, 8), projected], 1)
    assert isinstance(model.blocks[0].attention_norm, torch.nn.Identity)
    assert isinstance(model.blocks[1].attention_norm, torch.nn.LayerNorm)
    state = model.blocks[1](model.blocks[0](tokens))
    assert state.shape == (5, 1, 8)
    cls = state[:, 0]
    centred = cls - cls.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    last = model.head[2]
    normed = normed * model.head[0].weight + model.head[0].bias
    expected = normed.clamp_min(0) @ last.weight.t() + last.bias
    torch.testing.assert_close(model(data), expected.squeeze(1))


def test_ft_transformer_of_one_block_attends_from_the_class_token_alone() -> None:
    model = build(config("ft_transformer", width=8, heads=2, blocks=1)).eval()
    block = model.blocks[0]
    assert block.summary_only
    assert isinstance(block.attention_norm, torch.nn.Identity)
    assert model(batch(3)).shape == (3,)
