"""Factorised interactions, their blocks and the field gate against values computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recsys.layers.batch_norm import BatchNorm
from recsys.layers.dropout import Dropout
from recsys.layers.factorized import FactorizedBlock, FactorizedInteraction, FieldGate

WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
BIAS = torch.tensor([0.0, 1.0, 0.0, -1.0])


def test_interaction_by_hand() -> None:
    # x = (2, 3): W x + b = (2, 4, 5, 3), so h2 = (2, 4), h1 = (5, 3), h1 * h2 = (10, 12)
    x = torch.tensor([[2.0, 3.0]])
    for residual, width, expected in (("concat", 4, [2.0, 4.0, 10.0, 12.0]), ("sum", 2, [12, 16])):
        layer = FactorizedInteraction(input_dim=2, output_dim=width, residual=residual)
        with torch.no_grad():
            layer.linear.weight.copy_(WEIGHT)
            layer.linear.bias.copy_(BIAS)
        assert layer(x).tolist() == [expected]


def test_a_stack_of_n_layers_is_a_polynomial_of_degree_2_to_the_n() -> None:
    torch.manual_seed(0)
    block = FactorizedBlock(input_dim=1, hidden_units=(4, 4), batch_norm=False).double()
    points = torch.arange(6, dtype=torch.float64).unsqueeze(1)
    values = block(points)[:, -1]
    differences = values
    for order in range(1, 6):
        differences = differences.diff()
        if order == 4:
            assert differences.abs().max() > 1e-3
    torch.testing.assert_close(differences, torch.zeros_like(differences), atol=1e-8, rtol=0)


def test_block_order_is_interaction_norm_activation_dropout() -> None:
    block = FactorizedBlock(input_dim=3, hidden_units=(4, 2), activation="relu", dropout=0.1)
    one = [FactorizedInteraction, BatchNorm, nn.ReLU, Dropout]
    assert [type(layer) for layer in block.layers] == one * 2
    bare = FactorizedBlock(input_dim=3, hidden_units=(4,), batch_norm=False)
    assert [type(layer) for layer in bare.layers] == [FactorizedInteraction]


@pytest.mark.parametrize("residual", ["concat", "sum"])
def test_gradient_with_an_activation_in_place(residual: str) -> None:
    torch.manual_seed(0)
    block = FactorizedBlock(
        input_dim=3, hidden_units=(4, 4), activation="relu", batch_norm=False, residual=residual
    ).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


def test_field_gate_mixes_fields_per_dimension() -> None:
    gate = FieldGate(num_fields=2)
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert torch.equal(gate(x), torch.cat([x, x], dim=1))
    with torch.no_grad():
        gate.linear.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        gate.linear.bias.copy_(torch.tensor([0.5, 1.0]))
    # gates of field 0: (1 + 2*3 + .5, 2 + 2*4 + .5); of field 1: (-3 + 1, -4 + 1)
    expected = [[1.0, 2.0], [3.0, 4.0], [7.5, 21.0], [-6.0, -12.0]]
    assert gate(x).tolist() == [expected]
