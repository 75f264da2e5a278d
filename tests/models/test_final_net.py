"""FinalNet: branches, gate, distillation loss and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lookup_double import batch, build
from pydantic import ValidationError
from torch import Tensor

from recsys.models import MODELS
from recsys.types import Target

SMALL = {"block1": {"hidden_units": (4,)}, "block2": {"hidden_units": (6, 4)}}


def final_net(**settings: Any) -> Any:
    return MODELS["final_net"].Config(**{**SMALL, **settings})


def target(labels: list[float], weights: list[float]) -> Target:
    return Target(
        torch.tensor(labels), torch.tensor(weights), torch.zeros(len(labels), dtype=torch.int64)
    )


def branch(parts: Any, x: Tensor) -> Tensor:
    """One branch in evaluation, fresh batch norm (mean 0, variance 1), no activation."""
    block, output = parts
    for layer in block.layers:
        if hasattr(layer, "linear"):
            h2, h1 = (x @ layer.linear.weight.T + layer.linear.bias).chunk(2, 1)
            x = torch.cat([h2, h1 * h2], 1)
        else:
            x = x / math.sqrt(1 + 1e-5)
    return x @ output.weight[0] + output.bias


def test_logits_are_the_mean_of_the_branches() -> None:
    model, data = build(final_net()).eval(), batch(5)
    x = model.embedding(data).flatten(1)
    expected = (branch(model.block1, x) + branch(model.block2[0], x)) / 2
    torch.testing.assert_close(model(data), expected)


def test_the_gate_widens_the_first_branch_only() -> None:
    model, data = build(final_net(field_gate=True)).eval(), batch(5)
    with torch.no_grad():
        model.field_gate[0].linear.weight.normal_()
    x = model.embedding(data)  # (B, 5, 4)
    linear = model.field_gate[0].linear
    gates = torch.einsum("fk,bkd->bfd", linear.weight, x) + linear.bias[None, :, None]
    gated = torch.cat([x.flatten(1), (x * gates).flatten(1)], 1)  # (B, 40)
    expected = (branch(model.block1, gated) + branch(model.block2[0], x.flatten(1))) / 2
    torch.testing.assert_close(model(data), expected)


def test_one_branch_is_its_own_logit_and_its_loss_the_cross_entropy() -> None:
    model, data = build(final_net(block2=None)).eval(), batch(3)
    logits = model(data)
    torch.testing.assert_close(logits, branch(model.block1, model.embedding(data).flatten(1)))
    label, weight = [1.0, 0.0, 1.0], [1.0, 2.0, 0.5]
    terms = [
        w * (math.log1p(math.exp(z)) - y * z)
        for z, y, w in zip(logits.tolist(), label, weight, strict=True)
    ]
    loss = model.loss(data, target(label, weight))
    assert loss.item() == pytest.approx(sum(terms) / 3.5, rel=1e-5)


def test_two_branches_also_learn_from_their_mean() -> None:
    model, data = build(final_net()).eval(), batch(3)
    x = model.embedding(data).flatten(1)
    first = branch(model.block1, x).tolist()
    second = branch(model.block2[0], x).tolist()
    label, weight = [1.0, 0.0, 1.0], [1.0, 2.0, 0.5]

    def entropy(z: float, y: float) -> float:
        return math.log1p(math.exp(z)) - y * z

    total = 0.0
    for z1, z2, y, w in zip(first, second, label, weight, strict=True):
        z = (z1 + z2) / 2
        soft = 1 / (1 + math.exp(-z))
        total += w * (entropy(z, y) + entropy(z1, soft) + entropy(z2, soft))
    assert model.loss(data, target(label, weight)).item() == pytest.approx(total / 3.5, rel=1e-5)


def test_the_teacher_gets_no_gradient() -> None:
    """By hand: d loss / d b_1 = [ (p - y) / 2 + (p_1 - p) ], b_1 the bias of the first branch."""
    model, data = build(final_net()).eval(), batch(1)
    x = model.embedding(data).flatten(1)
    one, mean = branch(model.block1, x).sigmoid().item(), model(data).sigmoid().item()
    model.loss(data, target([1.0], [1.0])).backward()
    expected = (mean - 1) / 2 + (one - mean)
    assert model.block1[1].bias.grad.item() == pytest.approx(expected, abs=1e-6)


def test_a_weight_of_zero_takes_a_row_out_of_the_loss() -> None:
    model, data = build(final_net()).eval(), batch(4)
    with_row = model.loss(data, target([1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]))
    flipped = model.loss(data, target([1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]))
    assert torch.equal(with_row, flipped)


def test_reference_size_on_frappe() -> None:
    settings = {"activation": "relu", "dropout": 0.1}
    config = final_net(
        block1={"hidden_units": (400, 400), **settings},
        block2={"hidden_units": (400,), **settings},
        field_gate=True,
    )
    model = build(config, numerics=0, categoricals=10, dim=10)
    network = sum(p.numel() for p in model.parameters()) - 10 * 10 * 10
    # what the published run reports, 338,502, less its 5,399 vectors of width 10
    assert network == 338_502 - 53_990


def test_odd_widths_are_refused_where_halves_are_joined() -> None:
    with pytest.raises(ValidationError, match="hidden_units 5: residual concat"):
        final_net(block1={"hidden_units": (4, 5)})
    assert final_net(block1={"hidden_units": (5,), "residual": "sum"}).block1.hidden_units == (5,)
