"""Pairs, gated crosses, logarithmic layer and transformer block against loops over numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.layers import PairDots, PairProducts
from recsys.layers.cross import GatedCrossNet
from recsys.layers.logarithmic import LogarithmicLayer
from recsys.layers.transformer import TransformerBlock


def test_pairs_are_all_pairs_in_order() -> None:
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    dots, products = PairDots(num_fields=4)(x), PairProducts(num_fields=4)(x)
    assert dots.shape == (3, 6)
    assert products.shape == (3, 6, 2)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for b in range(3):
        for p, (i, j) in enumerate(pairs):
            product = [float(x[b, i, d] * x[b, j, d]) for d in range(2)]
            assert products[b, p].tolist() == pytest.approx(product)
            assert float(dots[b, p]) == pytest.approx(sum(product), abs=1e-6)


def test_one_field_has_no_pairs() -> None:
    x = torch.ones(2, 1, 3)
    assert PairDots(num_fields=1)(x).shape == (2, 0)
    assert PairProducts(num_fields=1)(x).shape == (2, 0, 3)


def test_gated_cross_network_by_hand() -> None:
    net = GatedCrossNet(input_dim=2, layers=2)
    with torch.no_grad():
        net.crosses[0].weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        net.crosses[0].bias.copy_(torch.tensor([1.0, 0.0]))
        net.gates[0].weight.zero_()
        net.crosses[1].weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        net.crosses[1].bias.copy_(torch.tensor([0.0, -1.0]))
        net.gates[1].weight.copy_(torch.tensor([[100.0, 0.0], [-100.0, 0.0]]))
    # x0 = (1, 2): W0 x0 + b0 = (6, 2), gates 1/2: x1 = (1*6/2 + 1, 2*2/2 + 2) = (4, 4)
    # W1 x1 + b1 = (4, 3), gates open (1) and shut (0): x2 = (1*4 + 4, 0 + 4) = (8, 4)
    assert net(torch.tensor([[1.0, 2.0]])).tolist() == [[8.0, 4.0]]


def test_gated_crosses_start_with_biases_between_0_and_1() -> None:
    bias = GatedCrossNet(input_dim=500, layers=1).crosses[0].bias.detach()
    assert 0 <= float(bias.min()) < 0.05
    assert 0.95 < float(bias.max()) < 1


def test_logarithmic_layer_is_a_product_of_powers() -> None:
    layer = LogarithmicLayer(num_fields=3, dim=2, neurons=2).eval()
    with torch.no_grad():
        layer.powers.weight.copy_(torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.5, 1.0]]))
    x = torch.tensor([[[2.0, -1.0], [3.0, 4.0], [-0.5, 0.0]]])
    # Fresh running statistics: both norms divide by sqrt(1 + 1e-5) only.
    shrink = (1 + 1e-5) ** -0.5
    columns = [(2.0, 3.0, 0.5), (1.0, 4.0, 1e-5)]  # |x|, at least 1e-5
    expected = [
        shrink * float(np.prod(np.power(column, np.multiply(powers, shrink))))
        for column in columns
        for powers in ((1.0, 2.0, 0.0), (-1.0, 0.5, 1.0))
    ]
    assert layer(x)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_logarithms_are_normalised_per_field_and_products_per_neuron() -> None:
    torch.manual_seed(0)
    layer = LogarithmicLayer(num_fields=3, dim=4, neurons=5).train()
    out = layer(torch.randn(64, 3, 4)).view(64, 4, 5)
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var((0, 1), unbiased=False), torch.ones(5), atol=1e-2, rtol=0)
    assert int((layer.log_norm.running_mean == 0).sum()) == 0


def norm(row: np.ndarray, layer: torch.nn.LayerNorm) -> np.ndarray:
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return (row - row.mean()) / np.sqrt(row.var() + 1e-5) * weight + bias


def block_by_hand(block: TransformerBlock, x: np.ndarray, heads: int) -> np.ndarray:
    """The definition, one token and one head at a time, for one row (T, d)."""
    state = {name: weight.detach().numpy() for name, weight in block.named_parameters()}
    w_q, w_k, w_v = state["attention.weight"]
    normed = x
    if isinstance(block.attention_norm, torch.nn.LayerNorm):
        normed = np.stack([norm(row, block.attention_norm) for row in x])
    size = x.shape[1] // heads
    mixed = np.zeros_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for t, token in enumerate(normed):
            query = w_q[part] @ token
            scores = [query @ (w_k[part] @ other) / np.sqrt(size) for other in normed]
            weights = np.exp(scores) / np.sum(np.exp(scores))
            values = (w_v[part] @ other for other in normed)
            mixed[t, part] = sum(w * v for w, v in zip(weights, values, strict=True))
    out = np.zeros_like(x)
    for t in range(len(x)):
        h = x[t] + state["attention_output.weight"] @ mixed[t] + state["attention_output.bias"]
        both = state["ffn_in.weight"] @ norm(h, block.ffn_norm) + state["ffn_in.bias"]
        value, gate = both[: len(both) // 2], both[len(both) // 2 :]
        hidden = value * np.maximum(gate, 0)
        out[t] = h + state["ffn_out.weight"] @ hidden + state["ffn_out.bias"]
    return out


@pytest.mark.parametrize("attention_norm", [True, False])
def test_transformer_block_by_hand(attention_norm: bool) -> None:
    torch.manual_seed(1)
    block = TransformerBlock(width=6, heads=2, hidden=5, attention_norm=attention_norm)
    block = block.double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    out = block(x).detach().numpy()
    for b in range(3):
        np.testing.assert_allclose(out[b], block_by_hand(block, x[b].numpy(), 2), atol=1e-9)


def test_summary_only_is_the_first_token_of_the_full_block() -> None:
    torch.manual_seed(2)
    full = TransformerBlock(width=8, heads=4, hidden=6).eval()
    first = TransformerBlock(width=8, heads=4, hidden=6, summary_only=True).eval()
    first.load_state_dict(full.state_dict())
    for rows in (0, 1, 5):
        x = torch.randn(rows, 7, 8)
        torch.testing.assert_close(first(x), full(x)[:, :1])


BEHIND = {
    "attention_dropout": ("attention_output",),
    "ffn_dropout": ("ffn_out",),
    "residual_dropout": ("attention_output", "ffn_out"),
}


def test_dropouts_reach_what_they_are_named_after() -> None:
    torch.manual_seed(3)
    x = torch.randn(50, 3, 8)
    for name in ("attention_dropout", "ffn_dropout", "residual_dropout"):
        for summary_only in (False, True):
            block = TransformerBlock(
                width=8, heads=2, hidden=6, summary_only=summary_only, **{name: 0.5}
            )
            assert not torch.equal(block.train()(x), block(x)), name
            assert torch.equal(block.eval()(x), block(x)), name
            with torch.no_grad():  # with nothing behind it, a dropout changes nothing
                for part in BEHIND[name]:
                    for parameter in getattr(block, part).parameters():
                        parameter.zero_()
            assert torch.equal(block.train()(x), block(x)), name
