"""The local activation unit against its formula, and what must never reach it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys.layers.target_attention import TargetAttention


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def inputs(rows: int = 5, length: int = 4, dim: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    candidate = torch.randn(rows, dim, generator=generator)
    lengths = torch.arange(rows) % (length + 1)  # the first row is empty
    mask = torch.arange(length) < lengths.unsqueeze(1)
    history = torch.randn(rows, length, dim, generator=generator) * mask.unsqueeze(2)
    return candidate, history, mask


def unit(**keys: object) -> TargetAttention:
    torch.manual_seed(0)
    made = TargetAttention(input_dim=3, hidden_units=(6, 4), **keys)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def by_hand(made: TargetAttention, v: np.ndarray, history: np.ndarray, softmax: bool) -> np.ndarray:
    """One row without padding: the weights by the paper's formula, sigmoid activations."""
    state = {name: value.detach().numpy() for name, value in made.named_parameters()}
    first_w, first_b, w1, b1, w2, b2 = state.values()
    scores = []
    for h in history:
        x = np.concatenate([v, h, v - h, v * h])
        x = sigmoid(first_w @ x + first_b)
        x = sigmoid(w1 @ x + b1)
        scores.append((w2 @ x + b2).item())
    if not softmax:
        return np.array(scores)
    e = np.exp(np.array(scores) / np.sqrt(len(v)))
    return e / e.sum()


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_weights_and_sum_are_the_formula(softmax: bool, training: bool) -> None:
    candidate, history, mask = inputs()
    made = unit(activation="sigmoid", softmax=softmax).train(training)
    weights = made.weights(candidate, history, mask).detach().numpy()
    pooled = made(candidate, history, mask).detach().numpy()
    for row in range(len(candidate)):
        count = int(mask[row].sum())
        rows = history[row, :count].numpy()
        expected = by_hand(made, candidate[row].numpy(), rows, softmax)
        assert weights[row, :count] == pytest.approx(expected, abs=1e-5)
        assert not weights[row, count:].any()
        assert pooled[row] == pytest.approx((expected[:, None] * rows).sum(0), abs=1e-5)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_padding_never_matters(softmax: bool, training: bool) -> None:
    """Not its content, not its amount; in training not even through the statistics of Dice."""
    candidate, history, mask = inputs()
    first, other = (unit(softmax=softmax).train(training) for _ in range(2))
    junk = torch.where(mask.unsqueeze(2), history, torch.full_like(history, 1e3))
    longer = torch.cat([junk, torch.full((5, 7, 3), -50.0)], dim=1)
    wider = torch.cat([mask, torch.zeros(5, 7, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(first(candidate, history, mask), other(candidate, longer, wider))
    for ours, theirs in zip(first.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_running_statistics_are_those_of_valid_positions() -> None:
    candidate, history, mask = inputs()
    made = unit().train()
    made(candidate, history, mask)
    places = [(b, t) for b in range(5) for t in range(int(mask[b].sum()))]
    x = torch.stack(
        [
            torch.cat([v, h, v - h, v * h])
            for v, h in ((candidate[b], history[b, t]) for b, t in places)
        ]
    )
    x = x @ made.first.weight.T + made.first.bias
    norm = made.rest[0].norm
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * x.var(0))


def test_a_history_twice_doubles_the_sum_but_not_the_softmax() -> None:
    candidate, history, mask = inputs()
    twice, mask_twice = torch.cat([history, history], 1), torch.cat([mask, mask], 1)
    for softmax, factor in ((False, 2.0), (True, 1.0)):
        made = unit(softmax=softmax).eval()
        once = made(candidate, history, mask)
        assert once[1:].abs().min() > 0
        torch.testing.assert_close(made(candidate, twice, mask_twice), factor * once)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_empty_histories_give_zeros_and_finite_gradients(softmax: bool, training: bool) -> None:
    made = unit(softmax=softmax).train(training)
    for length in (0, 4):
        candidate = torch.randn(2, 3, requires_grad=True)
        history = torch.randn(2, length, 3, requires_grad=True)
        out = made(candidate, history, torch.zeros(2, length, dtype=torch.bool))
        assert torch.equal(out, torch.zeros(2, 3))
        out.sum().backward()
        for tensor in (history, *made.parameters()):
            assert tensor.grad is None or torch.isfinite(tensor.grad).all()
    for tensor in (*made.parameters(), *made.buffers()):
        assert torch.isfinite(tensor).all()


def test_one_row_with_one_event_trains() -> None:
    made = unit().train()
    out = made(torch.randn(1, 3), torch.randn(1, 1, 3), torch.ones(1, 1, dtype=torch.bool))
    out.sum().backward()
    assert torch.isfinite(made.first.weight.grad).all()
    assert made.first.weight.grad.abs().sum() > 0


def test_no_rows() -> None:
    made = unit()
    for training in (False, True):
        made.train(training)
        out = made(torch.zeros(0, 3), torch.zeros(0, 4, 3), torch.zeros(0, 4, dtype=torch.bool))
        assert out.shape == (0, 3)


def test_bf16_autocast_keeps_padding_out() -> None:
    candidate, history, mask = inputs()
    made = unit(softmax=True).eval()
    with torch.autocast("cpu", torch.bfloat16):
        weights = made.weights(candidate, history, mask)
    assert not weights[~mask].any()
    sums = weights.sum(1)
    torch.testing.assert_close(sums, (mask.any(1)).float(), atol=1e-2, rtol=0)
