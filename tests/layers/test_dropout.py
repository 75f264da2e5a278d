"""Dropout: rates, scaling, gradients, reproducibility."""

from __future__ import annotations

import pytest
import torch

from recsys.layers.dropout import Dropout, draw_kept


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_the_fraction_asked_for_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(1000, 1000))
    # a million draws: the standard deviation of the fraction is below .0005
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=0.0025)
    assert y[y != 0].unique().tolist() == [pytest.approx(1 / (1 - p), rel=2e-4)]
    assert y.double().mean().item() == pytest.approx(1, abs=0.03)


def test_columns_and_rows_are_dropped_independently() -> None:
    torch.manual_seed(1)
    kept = draw_kept((4000, 64), 0.5)[0].float()
    correlation = torch.corrcoef(kept.T) - torch.eye(64)
    assert correlation.abs().max() < 0.1  # 6 standard deviations of 1 / sqrt(4000)


def test_the_gradient_passes_where_the_value_did() -> None:
    x = torch.ones(50, 7, requires_grad=True)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_same_generator_state_same_mask_and_evaluation_is_the_identity() -> None:
    layer, x = Dropout(0.4), torch.randn(33, 5)
    first, second = ((torch.manual_seed(3), layer(x))[1] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(torch.jit.script(layer)(x), x)
    assert layer.train()(torch.zeros(0, 5)).shape == (0, 5)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
