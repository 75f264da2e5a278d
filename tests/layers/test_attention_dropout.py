"""Dropout of attention weights inside the kernel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from test_attention import VARIANTS, layer, torch_threads

from recsys.layers.attention_function import kept_weights


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_dropped_weights_are_those_of_the_mask(variant: str, size: float) -> None:
    flags = VARIANTS[variant]
    net = layer(6, 8, 4, **flags, dropout=0.4).double()
    with torch.no_grad():
        net.weight[0] *= size  # at 100 scores are shifted by their maxima
    x = torch.randn(9, 7, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(11)
    fast = net(x)
    torch.manual_seed(11)
    kept, keep = kept_weights((4, 9, 7, 7), 0.4)
    assert keep == 1 - round(0.4 * 2**16) / 2**16

    # The definition once more, with this mask in place of `F.dropout`.
    projected = F.linear(x, net.weight.flatten(0, 1))
    if net.relu_projections:
        projected = projected.relu()
    parts = projected.view(9, 7, -1, 4, 2).permute(2, 0, 3, 1, 4)  # (blocks, B, H, F, d)
    scores = parts[0] @ parts[1].transpose(2, 3) * net.factor
    attention = scores.softmax(-1) * kept.transpose(0, 1) / keep
    plain = (attention @ parts[2]).transpose(1, 2).reshape(9, 7, 8)
    if net.project_residual:
        plain = plain + projected[:, :, 24:]
    plain = net.norm(plain).relu() if net.norm_first else net.norm(plain.relu())

    torch.testing.assert_close(fast, plain)
    toward = torch.randn_like(plain)
    inputs = (x, *net.parameters())
    expected = torch.autograd.grad(plain, inputs, toward)
    for ours, theirs in zip(torch.autograd.grad(fast, inputs, toward), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8 * theirs.abs().max().item())


def test_a_seed_fixes_dropout_with_any_number_of_threads() -> None:
    net = layer(8, 8, 2, dropout=0.3)
    x = torch.randn(9000, 3, 8)

    def run(threads: int) -> torch.Tensor:
        torch.manual_seed(5)
        with torch_threads(threads):
            return net(x).detach()

    first = run(1)
    assert torch.equal(run(1), first)
    assert torch.equal(run(2), first)
    state = torch.get_rng_state()
    after = net(x)  # draws go on from the generator's state
    assert not torch.equal(after, first)
    torch.set_rng_state(state)
    assert torch.equal(net(x), after)


@pytest.mark.parametrize("dropout", [1e-3, 0.1, 0.5, 0.97])
def test_as_many_weights_are_dropped_as_asked(dropout: float) -> None:
    torch.manual_seed(0)
    shape = (3, 500, 13, 13)
    kept, keep = kept_weights(shape, dropout)
    assert kept.shape == shape
    assert keep == pytest.approx(1 - dropout, abs=2**-17)
    assert set(kept.unique().tolist()) == {0, 1}
    deviation = math.sqrt(keep * (1 - keep) / kept.numel())
    assert kept.double().mean().item() == pytest.approx(keep, abs=5 * deviation)
    # The four weights of one draw are independent: pairs are both dropped dropout^2 of the time.
    quads = (kept.flatten()[: kept.numel() // 4 * 4] == 0).view(-1, 4).double()
    both = (quads.T @ quads / len(quads))[~torch.eye(4, dtype=torch.bool)]
    bound = 5 * math.sqrt(dropout**2 / len(quads))
    assert (both - dropout**2).abs().max().item() < bound


def test_dropout_of_no_rows() -> None:
    net = layer(dropout=0.5)
    x = torch.randn(0, 3, 8, requires_grad=True)
    out = net(x)
    assert out.shape == (0, 3, 8)
    out.sum().backward()
    assert net.weight.grad is not None
    assert not net.weight.grad.any()
