"""MLP, FM and cross network against values computed by hand."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from recsys import layers
from recsys.layers import FM, MLP, CrossNetV2
from recsys.layers.batch_norm import BatchNorm
from recsys.layers.dropout import Dropout

MODULES = sorted(Path(layers.__file__).parent.glob("*.py"))
WITH_EXAMPLES = [path.stem for path in MODULES if ">>>" in path.read_text()]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(f"recsys.layers.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


def test_fm_of_three_fields() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]]])
    # <1,2> = 3 - 2, <1,3> = 0.5 + 8, <2,3> = 1.5 - 4
    assert FM()(x).tolist() == [1.0 + 8.5 - 2.5]


def test_fm_gradient() -> None:
    x = torch.randn(4, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FM(), (x,))
    (gradient,) = torch.autograd.grad(FM()(x).sum(), x)
    torch.testing.assert_close(gradient, x.sum(1, keepdim=True) - x)


def test_cross_network_by_hand() -> None:
    net = CrossNetV2(input_dim=2, layers=2)
    with torch.no_grad():
        net.crosses[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        net.crosses[0].bias.copy_(torch.tensor([1.0, 0.0]))
        net.crosses[1].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        net.crosses[1].bias.copy_(torch.tensor([0.0, -1.0]))
    # x0 = (1, 2): W0 x0 + b0 = (6, 2); x1 = (1*6+1, 2*2+2) = (7, 6)
    # W1 x1 + b1 = (6, 6);              x2 = (1*6+7, 2*6+6) = (13, 18)
    assert net(torch.tensor([[1.0, 2.0]])).tolist() == [[13.0, 18.0]]


def test_low_rank_cross_is_the_product_of_its_factors() -> None:
    net = CrossNetV2(input_dim=5, layers=1, low_rank=2)
    down, up = net.crosses[0]
    x = torch.randn(3, 5)
    expected = x * (x @ (up.weight @ down.weight).T + up.bias) + x
    torch.testing.assert_close(net(x), expected)
    assert sum(p.numel() for p in net.parameters()) == 2 * 2 * 5 + 5


def test_mlp_order_is_linear_norm_activation_dropout() -> None:
    mlp = MLP(input_dim=3, hidden_units=(4,), dropout=0.5, batch_norm=True, output_dim=1)
    kinds = [type(layer) for layer in mlp.layers]
    assert kinds == [nn.Linear, BatchNorm, nn.ReLU, Dropout, nn.Linear]


def test_mlp_by_hand() -> None:
    mlp = MLP(input_dim=2, hidden_units=(2,), output_dim=1)
    with torch.no_grad():
        mlp.layers[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        mlp.layers[2].weight.copy_(torch.tensor([[2.0, 3.0]]))
        mlp.layers[2].bias.fill_(0.5)
    # hidden relu(1+2, 1-2) = (3, 0); 2*3 + 0.5
    assert mlp(torch.tensor([[1.0, 2.0]])).tolist() == [[6.5]]


def test_mlp_weights_start_xavier_normal_and_biases_zero() -> None:
    torch.manual_seed(0)
    first = MLP(input_dim=300, hidden_units=(500,)).layers[0]
    assert first.weight.std().item() == pytest.approx((2 / (300 + 500)) ** 0.5, rel=0.02)
    assert first.bias.abs().max().item() == 0


def test_batch_norm_matches_torch_and_survives_one_row() -> None:
    ours, theirs = BatchNorm(3).train(), nn.BatchNorm1d(3).train()
    x = torch.randn(6, 3)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    before = ours.running_mean.clone()
    torch.testing.assert_close(ours(x[:1]), theirs.eval()(x[:1]))
    assert torch.equal(ours.running_mean, before)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_activations_in_place_do_not_break_gradients(activation: str, batch_norm: bool) -> None:
    torch.manual_seed(1)
    mlp = MLP(
        input_dim=3,
        hidden_units=(4, 4),
        activation=activation,
        batch_norm=batch_norm,
        output_dim=1,
    ).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))
