"""The fusion of FinalMLP against loops over its definition."""

from __future__ import annotations

import pytest
import torch

from recsys.layers.bilinear_fusion import BilinearFusion


def test_one_head_by_hand() -> None:
    fusion = BilinearFusion(x_dim=2, y_dim=1)
    with torch.no_grad():
        fusion.weight.copy_(torch.tensor([[[2.0], [-1.0]]]))
        fusion.linear_x.weight.copy_(torch.tensor([[1.0, 0.5]]))
        fusion.linear_x.bias.fill_(0.25)
        fusion.linear_y.weight.fill_(10.0)
    # x = (3, 4), y = 0.5: 3 + 2 + 0.25 + 5 + (3*2 - 4) * 0.5
    assert fusion(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5]])).tolist() == [11.25]


def test_heads_pair_the_pieces_in_order() -> None:
    torch.manual_seed(0)
    heads, a, b, rows = 3, 2, 4, 5
    fusion = BilinearFusion(x_dim=heads * a, y_dim=heads * b, heads=heads)
    x, y = torch.randn(rows, heads * a), torch.randn(rows, heads * b)
    fusion.requires_grad_(False)
    expected = []
    for r in range(rows):
        total = fusion.linear_x.bias.item()
        total += sum(float(w * v) for w, v in zip(fusion.linear_x.weight[0], x[r], strict=True))
        total += sum(float(w * v) for w, v in zip(fusion.linear_y.weight[0], y[r], strict=True))
        for h in range(heads):
            for i in range(a):
                for j in range(b):
                    weight = fusion.weight[h, i, j]
                    total += float(x[r, h * a + i] * weight * y[r, h * b + j])
        expected.append(total)
    assert fusion(x, y).tolist() == pytest.approx(expected, abs=1e-5)


def test_bilinear_weights_start_with_the_reference_spread() -> None:
    torch.manual_seed(0)
    fusion = BilinearFusion(x_dim=400, y_dim=100, heads=5)
    assert fusion.weight.numel() == 400 * 100 // 5
    assert fusion.weight.std().item() == pytest.approx((2 / (8000 + 1)) ** 0.5, rel=0.03)


def test_gradient() -> None:
    torch.manual_seed(0)
    fusion = BilinearFusion(x_dim=4, y_dim=2, heads=2).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fusion, (x, y))


def test_no_rows() -> None:
    assert BilinearFusion(x_dim=4, y_dim=2, heads=2)(
        torch.zeros(0, 4), torch.zeros(0, 2)
    ).shape == (0,)
