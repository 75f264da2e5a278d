"""Windows and summaries, against attention with a mask over the whole sequence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.layers.local_attention import Blocks, LocalEncoder, in_blocks

WIDTH, HEADS = 8, 2


def encoder(layers: int = 2, summaries: bool = False) -> LocalEncoder:
    torch.manual_seed(0)
    return LocalEncoder(
        width=WIDTH, layers=layers, heads=HEADS, hidden=16, summaries=summaries
    ).eval()


def cut(lengths: list[int], b: int, window: int) -> Blocks:
    """Sequences of these lengths in blocks of ``b``."""
    owner, valid = [], []
    for i, length in enumerate(lengths):
        for start in range(0, length, b):
            owner.append(i)
            valid.append([start + j < length for j in range(b)])
    single = all(length <= b for length in lengths)
    return in_blocks(
        torch.tensor(owner, dtype=torch.int64),
        torch.tensor(valid, dtype=torch.bool).view(-1, b),
        window,
        single,
    )


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """(Q, D), (K, D), (K, D) -> (Q, D), head by head."""
    d = WIDTH // HEADS
    heads = [
        torch.softmax(
            (q[:, h : h + d] @ k[:, h : h + d].T / math.sqrt(d)).masked_fill(~visible, -math.inf), 1
        )
        @ v[:, h : h + d]
        for h in range(0, WIDTH, d)
    ]
    return torch.cat(heads, 1)


def by_definition(model: LocalEncoder, x: Tensor, summary: Tensor, half: int) -> tuple:
    """One sequence (L, D) and its summary (D,), with every score computed."""
    for block in model.blocks:
        every = torch.cat([summary[None], x])
        place = torch.arange(len(every))
        visible = ((place[:, None] - place).abs() <= half) | (place == 0)
        q, k, v = block.window.project(every).chunk(3, 1)
        tokens = block._rest(x, attend(q, k, v, visible)[1:])
        own = block.summary
        mixed = attend(
            own.query(summary[None]), own.key(every), own.value(every), visible[:1] | True
        )
        x, summary = tokens, block._rest(summary, mixed[0])
    return x, summary


@given(
    lengths=st.lists(st.integers(0, 13), min_size=1, max_size=4),
    half=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_blocks_attend_as_a_mask_over_the_whole_sequence(
    lengths: list[int], half: int, seed: int
) -> None:
    model, blocks = encoder(), cut(lengths, half, 2 * half)
    torch.manual_seed(seed)
    x = torch.randn(*blocks.valid.shape, WIDTH)
    summary = torch.randn(len(lengths), WIDTH)
    with torch.no_grad():
        tokens, summaries = model(x, summary, blocks, False)
        for i, length in enumerate(lengths):
            mine = blocks.owner == i
            own = x[mine].reshape(-1, WIDTH)[:length]
            expected, expected_summary = by_definition(model, own, summary[i], half)
            torch.testing.assert_close(summaries[i], expected_summary, atol=1e-5, rtol=1e-5)
            found = tokens[mine].reshape(-1, WIDTH)[:length]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_short_sequences_need_no_neighbours() -> None:
    """One block a sequence gives what blocks with (empty) neighbours give."""
    model = encoder()
    x, summary = torch.randn(3, 4, WIDTH), torch.randn(3, WIDTH)
    owner, valid = torch.arange(3), torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]) > 0
    near = model(x, summary, in_blocks(owner, valid, 8, single=True), False)
    wide = model(x, summary, in_blocks(owner, valid, 8, single=False), False)
    torch.testing.assert_close(near[1], wide[1])
    torch.testing.assert_close(near[0][valid], wide[0][valid])


def test_without_tokens_a_summary_sees_itself() -> None:
    model = encoder()
    blocks = cut([0, 3], 2, 4)
    _, summary = model(torch.randn(2, 2, WIDTH), torch.ones(2, WIDTH), blocks, True)
    alone = cut([0], 2, 4)
    _, expected = model(torch.zeros(0, 2, WIDTH), torch.ones(1, WIDTH), alone, True)
    assert torch.isfinite(summary).all()
    torch.testing.assert_close(summary[:1], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_tokens_and_summaries(dtype: torch.dtype) -> None:
    model = encoder(summaries=True)
    blocks = cut([5, 2], 2, 4)
    x = torch.randn(*blocks.valid.shape, WIDTH, requires_grad=True)
    summary = torch.randn(2, WIDTH, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        _, found = model(x, summary, blocks, True)
    found.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad[blocks.valid].abs().sum(1).min() > 0
    assert not x.grad[~blocks.valid].any(), "padding has no say"
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_gradient_is_that_of_the_definition() -> None:
    model = encoder().double()
    blocks = cut([5, 3], 2, 4)
    x = torch.randn(*blocks.valid.shape, WIDTH, dtype=torch.float64, requires_grad=True)
    summary = torch.randn(2, WIDTH, dtype=torch.float64, requires_grad=True)

    def found(x: Tensor, summary: Tensor) -> Tensor:
        tokens, summaries = model(x, summary, blocks, False)
        return torch.cat([tokens[blocks.valid], summaries])

    assert torch.autograd.gradcheck(found, (x, summary))
