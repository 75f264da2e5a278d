"""The interacting layer: hand-computed values, the kernel against its definition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from recsys.layers import InteractingLayer
from recsys.layers.attention_function import Attend
from recsys.layers.attention_kernel import attend
from recsys.layers.row_threads import over_rows

VARIANTS: dict[str, dict[str, Any]] = {
    "fuxictr": {},
    "paper": {"residual": "projected"},
    "official": {
        "scale": True,
        "residual": "projected",
        "relu_projections": True,
        "layer_norm": "after_relu",
    },
    "norm_before": {"layer_norm": "before_relu", "scale": True},
    "no_residual": {"residual": "none"},
}


def layer(input_dim: int = 8, dim: int = 8, heads: int = 2, **flags: Any) -> InteractingLayer:
    torch.manual_seed(0)
    return InteractingLayer(input_dim=input_dim, attention_dim=dim, heads=heads, **flags)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_two_fields_by_hand() -> None:
    net = layer(input_dim=1, dim=1, heads=1)
    with torch.no_grad():
        net.weight[:, 0, 0] = torch.tensor([1.0, 1.0, 2.0])  # Wq, Wk, Wv
    x = torch.tensor([[[0.0], [1.0]]])
    # Field 0: scores (0, 0), weights (1/2, 1/2), values (0, 2): 1 + x = 1.
    # Field 1: scores (0, 1), weights (1, e) / (1 + e): 2 e / (1 + e) + x = that + 1.
    p = math.e / (1 + math.e)
    out, attention = net.forward_with_attention(x)
    expected = torch.tensor([[[1.0], [2 * p + 1]]])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(attention, torch.tensor([[[[0.5, 0.5], [1 - p, p]]]]))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("widths", [(8, 8, 2), (6, 8, 4), (5, 3, 1), (16, 32, 2)])
def test_kernel_equals_definition_with_gradients(
    variant: str, widths: tuple[int, int, int]
) -> None:
    net = layer(*widths, **VARIANTS[variant])
    x = torch.randn(9, 7, widths[0], requires_grad=True)
    inputs = (x, *net.parameters())
    plain, fast = net.forward_with_attention(x)[0], net(x)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)
    toward = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, inputs, toward)
    for ours, theirs in zip(torch.autograd.grad(fast, inputs, toward), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("fields", [1, 2, 13, 39, 60])
def test_kernel_over_several_chunks(fields: int) -> None:
    net = layer(8, 8, 2)
    rows = 2500 if fields > 10 else 30
    x = torch.randn(rows, fields, 8, requires_grad=True)
    plain, fast = net.forward_with_attention(x)[0], net(x)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    toward = torch.randn_like(plain)
    ours = torch.autograd.grad(fast, (x, net.weight), toward)
    # Sums over 150,000 fields: in float32 the definition is further from the truth than the kernel.
    exact, x = net.double(), x.detach().double().requires_grad_()
    plain = exact.forward_with_attention(x)[0]
    expected = torch.autograd.grad(plain, (x, exact.weight), toward.double())
    for a, b in zip(ours, expected, strict=True):
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-5


@pytest.mark.parametrize("fields", [3, 39])
def test_threads_take_rows_and_agree(fields: int) -> None:
    net = layer(16, 32, 2)
    x = torch.randn(1100 if fields > 10 else 20_000, fields, 16, requires_grad=True)
    toward = torch.randn(len(x), fields, 32)

    def run(threads: int) -> tuple[torch.Tensor, ...]:
        with torch_threads(threads):
            out = net(x)
            grads = torch.autograd.grad(out, (x, net.weight), toward)
            with torch.inference_mode():
                assert torch.equal(net(x), out)
            assert torch.get_num_threads() == threads
        return (out.detach(), *grads)

    one, two, three, again = run(1), run(2), run(3), run(2)
    for a, b, c, d in zip(one, two, three, again, strict=True):
        assert torch.equal(b, d)  # a run repeats bit for bit
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * a.abs().max().item())
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-5 * a.abs().max().item())
    for a, b, c in zip(one[:2], two[:2], three[:2], strict=True):  # rows do not meet
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_row_threads_pass_errors_on_and_put_threads_back() -> None:
    def work(start: int, stop: int) -> int:
        if start:
            raise ValueError(f"{start} to {stop}")
        return stop

    with torch_threads(2):
        with pytest.raises(ValueError, match="8 to 10"):
            over_rows(work, rows=10, chunk=4)
        assert torch.get_num_threads() == 2
        assert over_rows(lambda a, b: (a, b), rows=10, chunk=4) == [(0, 8), (8, 10)]
        assert over_rows(lambda a, b: (a, b), rows=4, chunk=4) == [(0, 4)]
        assert over_rows(lambda a, b: (a, b), rows=0, chunk=4) == []


@pytest.mark.parametrize("blocks", [3, 4])
@pytest.mark.parametrize("relu_projections", [False, True])
@pytest.mark.parametrize("final_relu", [False, True])
def test_gradcheck(blocks: int, relu_projections: bool, final_relu: bool) -> None:
    torch.manual_seed(3)
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)  # keys are padded to 8
    weight = torch.randn(blocks, 6, 6, dtype=torch.float64, requires_grad=True)
    flags = (2, 0.7, relu_projections, blocks == 3, final_relu)
    kept = torch.randint(2, (2, 3, 5, 5), dtype=torch.uint8)
    for dropped in ((None, *flags, 1.0), (kept, *flags, 0.5)):
        assert torch.autograd.gradcheck(
            lambda a, w, args=dropped: Attend.apply(a, w, *args, False), (x, weight)
        )


@pytest.mark.parametrize("size", [1e-4, 1.0, 30.0, 1e4])
def test_scores_of_any_size_are_safe(size: float) -> None:
    net = layer().double()
    with torch.no_grad():
        net.weight[0] *= size  # scores far beyond the range of exp
    x = torch.randn(40, 5, 8, dtype=torch.float64, requires_grad=True)
    plain, fast = net.forward_with_attention(x)[0], net(x)
    assert fast.isfinite().all()
    torch.testing.assert_close(fast, plain)
    expected = torch.autograd.grad(plain.sum(), (x, net.weight))
    for a, b in zip(torch.autograd.grad(fast.sum(), (x, net.weight)), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7 * max(size, 1), rtol=1e-6)


def test_very_negative_scores_do_not_divide_zero_by_zero() -> None:
    net = layer(1, 1, 1)
    with torch.no_grad():
        net.weight[:, 0, 0] = torch.tensor([-1000.0, 1.0, 1.0])
    out = net(torch.ones(2, 3, 1))  # all scores -1000: attention uniform, 1 + 1
    torch.testing.assert_close(out, torch.full((2, 3, 1), 2.0))


def test_zero_queries_and_keys_give_uniform_attention() -> None:
    net = layer()
    with torch.no_grad():
        net.weight[:2] = 0
    _, attention = net.forward_with_attention(torch.randn(4, 5, 8))
    torch.testing.assert_close(attention, torch.full((4, 2, 5, 5), 0.2))


def test_dropout_drops_weights_in_training_only() -> None:
    net = layer(dropout=0.5)
    x = torch.randn(4, 6, 8)
    assert not torch.equal(net(x), net(x))
    _, attention = net.forward_with_attention(x)
    assert (attention == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    net.eval()
    assert torch.equal(net(x), net(x))
    _, attention = net.forward_with_attention(x)
    torch.testing.assert_close(attention.sum(-1), torch.ones(4, 2, 6))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [0, 1, 2, 7, 1500])
def test_scripted_equals_eager(variant: str, batch: int) -> None:
    net = layer(**VARIANTS[variant]).eval()
    scripted = torch.jit.script(net)
    x = torch.randn(batch, 13, 8)
    expected = net.forward_with_attention(x)[0]
    with torch.no_grad():
        torch.testing.assert_close(scripted(x), expected, rtol=1e-5, atol=1e-6)
        with torch_threads(1):
            assert torch.equal(scripted(x), net(x))
            strided = x.transpose(0, 1).contiguous().transpose(0, 1)
            assert torch.equal(scripted(strided), net(strided))
    with_gradient = scripted(x.requires_grad_())  # takes the plain path
    torch.testing.assert_close(with_gradient, expected, rtol=1e-5, atol=1e-6)
    assert with_gradient.requires_grad


def test_scale_multiplies_scores_once() -> None:
    net, scaled = layer(), layer(scale=True)
    with torch.no_grad():
        scaled.weight[0] *= 2.0  # head width 4: sqrt is 2
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(scaled(x), net(x))


def test_autocast_leaves_narrow_layers_in_float32() -> None:
    net = layer()
    x = torch.randn(3, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x.bfloat16())
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, net(x.bfloat16().float()))
    out.sum().backward()
    assert net.weight.grad is not None
    assert net.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_rounds_the_products_of_wide_layers(variant: str) -> None:
    net = layer(64, 64, 4, **VARIANTS[variant])
    x = torch.randn(150, 10, 64) * 0.5  # several chunks, the last one short
    x.requires_grad_()
    toward = torch.randn(150, 10, 64)

    def errors(out: torch.Tensor) -> list[float]:
        values = (out, *torch.autograd.grad(out, inputs, toward))
        return [((a - b).norm() / b.norm()).item() for a, b in zip(values, expected, strict=True)]

    inputs = (x, *net.parameters())
    exact = net(x)
    expected = (exact, *torch.autograd.grad(exact, inputs, toward))
    with torch.autocast("cpu", torch.bfloat16):
        rounded, plain = net(x), net.forward_with_attention(x)[0]
    assert rounded.dtype == torch.float32
    # Operands are rounded by up to 2^-9, in some four products after one another. Outputs so near
    # zero that their ReLU flips, 3 in 1000, make a gradient differ by the root of that.
    ours, theirs = errors(rounded), errors(plain)
    assert 0 < ours[0] < 2**-7
    assert max(ours) < 2**-3
    # Attention with all its products in bfloat16 is further off.
    assert ours[0] < theirs[0]
    assert max(ours) < 1.1 * max(theirs)


def test_no_gradient_is_kept_by_the_raw_kernel() -> None:
    net = layer()
    with torch.no_grad():
        out = attend(torch.randn(2, 3, 8), net.weight, 2, 1.0, False, True, True)
    assert not out.requires_grad
