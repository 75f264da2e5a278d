"""The operators of NASRec's blocks against their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from recsys.layers.block_config import MERGED, BlockConfig
from recsys.layers.choice_block import (
    DENSE_OPS,
    ChoiceBlock,
    DotProduct,
    EmbedFC,
    Gating,
    SparseTransformer,
    Sum,
    mixed_to,
)

LEFT, RIGHT, VECTORS, WIDTH, DIM, ROWS = 5, 7, 3, 9, 4, 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def op(kind: Any) -> Any:
    torch.manual_seed(0)
    return kind(left=LEFT, right=RIGHT, vectors=VECTORS, width=WIDTH, dim=DIM)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return drawn(ROWS, LEFT), drawn(ROWS, RIGHT, seed=1), drawn(ROWS, VECTORS, DIM, seed=2)


def normed(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_dense_operators_are_their_formulas() -> None:
    left, right, vectors = inputs()
    fc = op(DENSE_OPS["fc"])
    expected = normed(left @ fc.linear.weight.T).relu()
    torch.testing.assert_close(fc(left, right, vectors), expected)
    gating = op(Gating)
    gated = torch.sigmoid(left @ gating.gate.weight.T) * right
    expected = normed(gated @ gating.linear.weight.T)
    torch.testing.assert_close(gating(left, right, vectors), expected)
    total = op(Sum)
    padded = torch.cat([left, torch.zeros(ROWS, RIGHT - LEFT)], 1) + right
    torch.testing.assert_close(total(left, right, vectors), normed(padded @ total.linear.weight.T))


def test_dot_products_of_about_as_many_pairs_as_outputs() -> None:
    left, right, vectors = inputs()
    dots = op(DotProduct)
    k = mixed_to(WIDTH)
    assert k == round((2 * WIDTH) ** 0.5) == 4
    assert dots.linear.in_features == k * (k + 1) // 2
    t = [left @ dots.project.weight.T]
    t += [sum(dots.mix[i, n] * vectors[:, n] for n in range(VECTORS)) for i in range(k)]
    pairs = [(t[i] * t[j]).sum(1) for i in range(k + 1) for j in range(i)]
    expected = normed(torch.stack(pairs, 1) @ dots.linear.weight.T)
    torch.testing.assert_close(dots(left, right, vectors), expected)


def test_sparse_operators_mix_vectors() -> None:
    vectors = inputs()[2]
    mix = EmbedFC(vectors=VECTORS, count=2, dim=DIM)
    mixed = torch.stack([(mix.mix[m, :, None] * vectors).sum(1) for m in range(2)], 1)
    torch.testing.assert_close(mix(vectors), F.layer_norm(mixed, [DIM]).relu())
    layer = SparseTransformer(vectors=VECTORS, count=5, dim=DIM)
    assert layer.heads == 4
    assert SparseTransformer(vectors=VECTORS, count=5, dim=10).heads == 2
    out = layer(vectors)
    assert out.shape == (ROWS, 5, DIM)
    assert out.norm(dim=2).max() <= 0.17 * DIM**0.5 + 1e-5  # what a norm of that gain can give
    # the vectors attend to each other: a change of one input moves all outputs
    other = vectors.clone()
    other[:, 0] += 1
    assert ((layer(other) - out).abs().amax(2) > 0).all()


def block(**keys: Any) -> BlockConfig:
    return BlockConfig(**{"dense_from": [0], "sparse_from": [0]} | keys)


def test_mergers_join_what_the_operators_give() -> None:
    config = block(dense_width=WIDTH, sparse_count=2, to_sparse=True, to_dense=True)
    torch.manual_seed(0)
    both = ChoiceBlock(config, [LEFT], [VECTORS], DIM)
    left, _, vectors = inputs()
    d = both.dense_op(left, left, vectors)
    s = both.sparse_op(vectors)
    dense, sparse = both([left], [vectors])
    pairs = s[:, 0] * s[:, 1]  # all pairs of two vectors
    merged = normed(pairs @ both.to_dense[0].linear.weight.T)
    torch.testing.assert_close(dense, d + merged)
    assert sparse.shape == (ROWS, config.vectors, DIM) == (ROWS, 2 + MERGED, DIM)
    torch.testing.assert_close(sparse[:, :2], s)
    extra = both.to_sparse[0].linear(d).view(ROWS, MERGED, DIM)
    torch.testing.assert_close(sparse[:, 2:], F.layer_norm(extra, [DIM]))


@pytest.mark.parametrize(
    "config",
    [
        block(dense_op="fc", dense_from=[1], sparse_from=[0, 2]),
        block(dense_op="dot_product", dense_from=[0, 1], sparse_from=[2]),
        block(dense_op="gating", dense_from=[2], right_from=[0, 1]),
    ],
)
def test_only_named_sources_count(config: BlockConfig) -> None:
    torch.manual_seed(0)
    widths, counts = [3, 4, 5], [2, 6, 3]
    made = ChoiceBlock(config, widths, counts, DIM).eval()
    dense = [drawn(ROWS, width, seed=s) for s, width in enumerate(widths)]
    sparse = [drawn(ROWS, count, DIM, seed=s) for s, count in enumerate(counts)]
    before = made(dense, sparse)
    for s in range(3):
        other = [x + (i == s) for i, x in enumerate(dense)]
        moved = not torch.equal(made(other, sparse)[0], before[0])
        assert moved == (s in (*config.dense_from, *config.right_from)), s
        other = [x + (i == s) * drawn(*x.shape, seed=9) for i, x in enumerate(sparse)]
        after = made(dense, other)
        assert (not torch.equal(after[1], before[1])) == (s in config.sparse_from), s
        reads = config.dense_op == "dot_product" and s in config.sparse_from
        assert (not torch.equal(after[0], before[0])) == reads, s


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dense_op": "sum"}, "sum has a second argument: set right_from"),
        ({"right_from": [0]}, "fc has one argument: remove right_from"),
        ({"dense_from": [1, 0]}, "dense_from: name each source once, in rising order"),
        ({"sparse_from": []}, "at least 1 item"),
    ],
)
def test_blocks_that_cannot_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        block(**keys)
