"""Packed attention and sequence losses against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from recsys.layers.catalogue_loss import (
    catalogue_cross_entropy,
    gbce_beta,
    generalised_bce,
    sampled_softmax,
)
from recsys.layers.packed_attention import PackedAttention
from recsys.layers.sequence_encoder import SequenceEncoder


@pytest.mark.parametrize("causal", [False, True])
def test_packed_attention_and_its_gradient(causal: bool) -> None:
    """Row by row against loops over queries, heads and keys."""
    torch.manual_seed(0)
    lengths, heads, d = [5, 0, 1, 9], 2, 3
    q = torch.randn(15, 6, requires_grad=True)
    kv = torch.randn(15, 12, requires_grad=True)
    out = PackedAttention.apply(q, kv, lengths, lengths, heads, causal, 0.0)
    rows, start = [], 0
    for length in lengths:
        for t in range(start, start + length):
            stop = t + 1 if causal else start + length
            parts = []
            for h in range(heads):
                at = slice(h * d, h * d + d)
                k, v = kv[start:stop, :6][:, at], kv[start:stop, 6:][:, at]
                weights = ((k * q[t, at]).sum(1) / math.sqrt(d)).exp()
                parts.append((weights[:, None] * v).sum(0) / weights.sum())
            rows.append(torch.cat(parts))
        start += length
    by_hand = torch.stack(rows)
    torch.testing.assert_close(out, by_hand)
    grad = torch.randn(15, 6)
    for mine, other in zip(
        torch.autograd.grad(out, (q, kv), grad),
        torch.autograd.grad(by_hand, (q, kv), grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)


def test_fewer_queries_than_tokens_and_tokens_of_nobody() -> None:
    torch.manual_seed(0)
    q, kv = torch.randn(4, 4), torch.randn(8, 8)
    some = PackedAttention.apply(q, kv, [1, 2], [3, 4], 1, False, 0.0)
    first = PackedAttention.apply(q[:1].expand(3, 4), kv[:3], [3], [3], 1, False, 0.0)
    torch.testing.assert_close(some[0], first[0])
    assert not some[3].any()  # behind the last sequence


def test_dropped_weights_have_the_same_mean_and_their_gradient_is_exact() -> None:
    q, kv = torch.zeros(1, 1), torch.ones(1000, 2)
    torch.manual_seed(0)
    means = [PackedAttention.apply(q, kv, [1], [1000], 1, False, 0.4).item() for _ in range(50)]
    assert abs(sum(means) / 50 - 1) < 0.02
    assert len(set(means)) > 10
    lengths = [3, 2]
    q = torch.randn(5, 4, dtype=torch.float32, requires_grad=True)
    kv = torch.randn(5, 8, requires_grad=True)
    way = torch.randn(5, 8) * 1e-2

    def value(keys: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return PackedAttention.apply(q, keys, lengths, lengths, 2, False, 0.5).square().sum()

    (grad,) = torch.autograd.grad(value(kv), kv)
    numeric = (value(kv + way) - value(kv - way)).item() / 2
    assert abs((grad * way).sum().item() - numeric) < 2e-3 * abs(numeric) + 1e-4


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_packed_encoder_equals_the_padded_one(pre_norm: bool, causal: bool) -> None:
    torch.manual_seed(0)
    encoder = SequenceEncoder(
        width=8, layers=3, heads=2, hidden=12, causal=causal, pre_norm=pre_norm
    )
    x, lengths = torch.randn(3, 6, 8), torch.tensor([6, 0, 2])
    valid = torch.arange(6) < lengths[:, None]
    padded = encoder.padded(x, lengths)
    packed = encoder(x[valid], lengths, torch.arange(8), lengths)
    torch.testing.assert_close(packed, padded[valid], atol=1e-5, rtol=1e-5)
    last = encoder(x[valid], lengths, torch.tensor([5, 7]), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(last, packed[[5, 7]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 300])
@pytest.mark.parametrize("biased", [False, True])
def test_catalogue_cross_entropy_and_its_gradients(rows: int, biased: bool) -> None:
    torch.manual_seed(0)
    h = torch.randn(rows, 5, requires_grad=True)
    items, bias = torch.randn(5000, 5, requires_grad=True), torch.randn(5000, requires_grad=True)
    target = torch.randint(0, 5000, (rows,))
    wanted = [h, items, bias] if biased else [h, items]
    mine = catalogue_cross_entropy(h, items, bias if biased else None, target)
    logits = h @ items.T + (bias if biased else 0)
    one = F.cross_entropy(logits, target, reduction="sum") / max(rows, 1)
    torch.testing.assert_close(mine, one)
    both = torch.autograd.grad(3 * mine, wanted), torch.autograd.grad(3 * one, wanted)
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_a_hopeless_target_still_gets_its_gradient() -> None:
    h = torch.tensor([[200.0]], requires_grad=True)
    items = torch.tensor([[1.0], [0.0]])
    loss = catalogue_cross_entropy(h, items, None, torch.tensor([1]))
    assert torch.isfinite(loss)
    loss.backward()
    assert h.grad is not None
    assert h.grad.item() == pytest.approx(1.0)


def test_gbce_is_the_formula_of_the_paper_in_float64() -> None:
    torch.manual_seed(0)
    k, catalogue, t = 4, 11, 0.75
    positive, negative = torch.randn(6, dtype=torch.float64), torch.randn(6, k).double()
    alpha = k / (catalogue - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    assert gbce_beta(k, catalogue, t) == pytest.approx(beta)
    total = 0.0
    for s, others in zip(positive.tolist(), negative.tolist(), strict=True):
        up = 1 / (1 + math.exp(-s))
        gamma = math.log(1 / (up**-beta - 1))  # the authors' transform, then BCE
        transformed = math.log(1 / (1 + math.exp(-gamma)))
        assert transformed == pytest.approx(beta * math.log(up))
        total -= (transformed + sum(math.log(1 / (1 + math.exp(o))) for o in others)) / (k + 1)
    mine = generalised_bce(positive, negative, beta).item()
    assert mine == pytest.approx(total / 6, rel=1e-6)


def test_sampled_softmax_by_hand_and_a_negative_that_is_the_positive() -> None:
    positive, negative = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 2.0], [1.0, -math.inf]])
    first = math.log(math.e + 1 + math.e**2) - 1
    second = math.log(1 + math.e)
    assert sampled_softmax(positive, negative).item() == pytest.approx((first + second) / 2)
    assert generalised_bce(positive[1:], negative[1:, 1:], 1.0).item() == pytest.approx(
        math.log(2) / 2
    )
