"""Dice against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.layers.dice import Dice
from recsys.layers.mlp import MLP


def test_formula_in_training() -> None:
    dice = Dice(3).train()
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.25, -1.0]))
    x = torch.randn(7, 3) * 2 + 1
    values = x.numpy().astype(np.float64)
    p = 1 / (1 + np.exp(-(values - values.mean(0)) / np.sqrt(values.var(0) + 1e-8)))
    expected = p * values + (1 - p) * np.array([0.0, 0.25, -1.0]) * values
    assert dice(x).detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_alpha_one_is_the_identity() -> None:
    for training in (False, True):
        dice = Dice(4).train(training)
        torch.nn.init.ones_(dice.alpha)
        x = torch.randn(6, 4)
        torch.testing.assert_close(dice(x), x)


def test_alpha_zero_is_a_rectifier_around_the_running_mean() -> None:
    dice = Dice(1).eval()
    dice.norm.running_mean.fill_(5.0)
    x = torch.tensor([[-60.0], [-20.0], [25.0], [60.0]])
    torch.testing.assert_close(dice(x), torch.tensor([[0.0], [0.0], [25.0], [60.0]]))


def test_a_batch_of_one_row_trains_on_running_statistics() -> None:
    mlp = MLP(input_dim=2, hidden_units=(4,), activation="dice", output_dim=1).train()
    before = {name: buffer.clone() for name, buffer in mlp.named_buffers()}
    mlp(torch.randn(1, 2)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mlp.parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in mlp.named_buffers())
    assert mlp(torch.zeros(0, 2)).shape == (0, 1)


def test_every_mlp_can_have_it_and_scripts() -> None:
    mlp = MLP(input_dim=2, hidden_units=(4, 3), activation="dice", output_dim=1).eval()
    assert [m.alpha.numel() for m in mlp.modules() if isinstance(m, Dice)] == [4, 3]
    x = torch.randn(5, 2)
    torch.testing.assert_close(torch.jit.script(mlp)(x), mlp(x))
