"""The feature selection gate against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from recsys.layers.feature_gate import FeatureGate


def test_gate_by_hand() -> None:
    gate = FeatureGate(places=(2, 0), dim=1, hidden_units=(2,), output_dim=1)
    with torch.no_grad():
        gate.mlp.layers[0].weight.copy_(torch.tensor([[1.0, 10.0], [-1.0, 0.0]]))
        gate.mlp.layers[2].weight.copy_(torch.tensor([[0.1, 5.0]]))
        gate.mlp.layers[2].bias.fill_(-3.0)
    # c = (7, 2): relu(27, -7) = (27, 0); 2.7 - 3 = -0.3
    out = gate(torch.tensor([[[2.0], [99.0], [7.0]]]))
    assert out.item() == pytest.approx(2 / (1 + math.exp(0.3)))


def test_a_learned_context_is_one_gate_for_all_rows_and_can_move() -> None:
    torch.manual_seed(1)
    gate = FeatureGate(places=(), dim=4, hidden_units=(8,), output_dim=3)
    out = gate(torch.randn(6, 2, 4))
    assert out.shape == (1, 3)
    assert (out - 1).abs().max() < 0.05
    out.square().sum().backward()
    assert gate.context.vector.grad.abs().sum() > 0


def test_without_hidden_units_the_gate_is_linear_before_the_sigmoid() -> None:
    gate = FeatureGate(places=(0,), dim=2, hidden_units=(), output_dim=1)
    with torch.no_grad():
        gate.mlp.layers[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    out = gate(torch.tensor([[[5.0, 4.0]]]))
    assert out.item() == pytest.approx(2 / (1 + math.exp(-1)))
