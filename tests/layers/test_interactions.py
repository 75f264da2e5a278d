"""CrossNet, CIN, SENET and bilinear interaction against their papers' formulas, term by term."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

from recsys.layers import CIN, SENET, BilinearInteraction, CrossNet
from recsys.layers.bilinear import BilinearKind

KINDS: tuple[BilinearKind, ...] = ("field_all", "field_each", "field_interaction")


def _away_from_start(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module.double()


def test_cross_net_by_hand() -> None:
    net = CrossNet(input_dim=2, layers=2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0], [0.5, -1.0]]))
        net.bias.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    # x0 = (1, 2): w0.x0 = 5; x1 = (1*5+1+1, 2*5+0+2) = (7, 12)
    # w1.x1 = 3.5 - 12 = -8.5; x2 = (-8.5+0+7, -17-1+12) = (-1.5, -6)
    assert net(torch.tensor([[1.0, 2.0]])).tolist() == [[-1.5, -6.0]]


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_cross_net_is_its_recurrence(layers: int) -> None:
    net = _away_from_start(CrossNet(input_dim=7, layers=layers))
    x = torch.randn(4, 7, dtype=torch.float64)
    expected = x
    for weight, bias in zip(net.weight, net.bias, strict=True):
        expected = x * (expected @ weight).unsqueeze(1) + bias + expected
    torch.testing.assert_close(net(x), expected)


def test_cross_net_gradient() -> None:
    net = _away_from_start(CrossNet(input_dim=3, layers=3))
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b: net(x), (x, net.weight, net.bias))


def test_cross_net_starts_like_linears_of_width_one() -> None:
    torch.manual_seed(0)
    net = CrossNet(input_dim=400, layers=50)
    assert net.weight.std().item() == pytest.approx((2 / 401) ** 0.5, rel=0.03)
    assert net.bias.abs().max().item() == 0


def test_cin_by_hand() -> None:
    cin = CIN(num_fields=2, units=(1, 1))
    with torch.no_grad():
        cin.hidden[0].weight.copy_(torch.tensor([[1.0, 2.0, 0.0, -1.0]]))
        cin.hidden[0].bias.fill_(0.5)
        cin.last.weight.copy_(torch.tensor([[1.0, 3.0]]))
        cin.last.bias.fill_(-1.0)
    # fields a = (1, 2), b = (3, -1):
    # weights of aa, ab, ba, bb:
    # X1 = aa + 2ab - bb + .5 = (1+6-9+.5, 4-4-1+.5) = (-1.5, -.5), sum -2
    # X2 = X1 a + 3 X1 b - 1 = (-1.5-13.5-1, -1+1.5-1) = (-16, -.5), sum -16.5
    assert cin(torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])).tolist() == [[-2.0, -16.5]]


@pytest.mark.parametrize("units", [(3,), (4, 2), (2, 5, 3)])
def test_cin_is_its_sum_over_pairs(units: tuple[int, ...]) -> None:
    fields, dim = 3, 4
    cin = _away_from_start(CIN(num_fields=fields, units=units))
    assert cin.output_dim == sum(units)
    x = np.random.default_rng(0).normal(size=(2, fields, dim))
    expected = []
    for row in x:
        maps, pooled = row, []
        for layer in [*cin.hidden, cin.last]:
            weight = layer.weight.detach().numpy().reshape(-1, fields, len(maps))
            after = np.zeros((len(weight), dim))
            for h in range(len(weight)):
                after[h] = layer.bias[h].item()
                for i in range(fields):
                    for j in range(len(maps)):
                        after[h] += weight[h, i, j] * row[i] * maps[j]
            maps = after
            pooled.extend(after.sum(axis=1))
        expected.append(pooled)
    np.testing.assert_allclose(cin(torch.from_numpy(x)).detach(), expected, rtol=1e-10)


def test_senet_by_hand() -> None:
    senet = SENET(num_fields=2, reduction_ratio=2)
    with torch.no_grad():
        senet.weights[0].weight.copy_(torch.tensor([[1.0, 0.5]]))
        senet.weights[2].weight.copy_(torch.tensor([[2.0], [-1.0]]))
    # means (2, 2): relu(2 + 1) = 3; relu(6, -3) = (6, 0)
    x = torch.tensor([[[1.0, 3.0], [4.0, 0.0]]])
    assert senet(x).tolist() == [[[6.0, 18.0], [0.0, 0.0]]]
    # means (-2, -2): the bottleneck is closed
    assert senet(-x).abs().sum() == 0


def test_senet_with_a_sigmoid_halves_what_has_no_weight() -> None:
    senet = SENET(num_fields=3, reduction_ratio=1, excitation="sigmoid")
    with torch.no_grad():
        senet.weights[2].weight.zero_()
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(senet(x), x / 2)


@pytest.mark.parametrize(("fields", "ratio", "reduced"), [(10, 2, 5), (10, 3, 3), (2, 3, 1)])
def test_senet_bottleneck(fields: int, ratio: int, reduced: int) -> None:
    senet = SENET(num_fields=fields, reduction_ratio=ratio)
    assert [tuple(p.shape) for p in senet.parameters()] == [(reduced, fields), (fields, reduced)]


@pytest.mark.parametrize("kind", KINDS)
def test_bilinear_is_its_formula_pair_by_pair(kind: BilinearKind) -> None:
    fields, dim = 4, 3
    layer = BilinearInteraction(num_fields=fields, dim=dim, kind=kind).double()
    x = np.random.default_rng(1).normal(size=(2, fields, dim))
    weight = layer.weight.detach().numpy()
    expected = np.zeros((2, 6, dim))
    for b in range(2):
        for p, (i, j) in enumerate(combinations(range(fields), 2)):
            matrix = weight[{"field_all": 0, "field_each": i, "field_interaction": p}[kind]]
            expected[b, p] = (x[b, i] @ matrix) * x[b, j]
    np.testing.assert_allclose(
        layer(torch.from_numpy(x)).detach(), expected.reshape(2, -1), rtol=1e-10
    )
    assert layer.output_dim == 6 * dim
    assert len(weight) == {"field_all": 1, "field_each": 3, "field_interaction": 6}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_bilinear_matrices_start_xavier_normal(kind: BilinearKind) -> None:
    torch.manual_seed(0)
    weight = BilinearInteraction(num_fields=5, dim=64, kind=kind).weight
    assert weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_bilinear_gradient(kind: BilinearKind) -> None:
    layer = BilinearInteraction(num_fields=3, dim=2, kind=kind).double()
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: layer(x), (x, layer.weight))


@pytest.mark.parametrize(
    "layer",
    [
        CrossNet(input_dim=12, layers=3),
        CIN(num_fields=4, units=(5, 2)),
        SENET(num_fields=4),
        *(BilinearInteraction(num_fields=4, dim=3, kind=kind) for kind in KINDS),
    ],
    ids=lambda layer: getattr(layer, "kind", type(layer).__name__),
)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_scripted_equals_eager(layer: nn.Module, rows: int) -> None:
    x = torch.randn(rows, 4, 3)
    if isinstance(layer, CrossNet):
        x = x.flatten(1)
    result = layer(x)
    assert result.shape[0] == rows
    torch.testing.assert_close(torch.jit.script(layer)(x), result)
