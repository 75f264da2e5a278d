"""Mask block and field norm against values computed by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recsys.layers.dropout import Dropout
from recsys.layers.mask_block import FieldNorm, MaskBlock


def test_mask_multiplies_the_input_of_the_hidden_layer() -> None:
    block = MaskBlock(mask_dim=2, input_dim=2, output_dim=2, layer_norm=False)
    with torch.no_grad():
        block.mask[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        block.mask[0].bias.copy_(torch.tensor([0.0, 0.5]))
        block.mask[2].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        block.mask[2].bias.copy_(torch.tensor([0.0, -3.0]))
        block.hidden[0].weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    # e = (1, 2): relu(3, -0.5) = (3, 0); mask = (6, -3); h = (0.5, 4): product (3, -12)
    # W_h: (3 - 12, 3) = (-9, 3); relu: (0, 3)
    out = block(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]]))
    assert out.tolist() == [[0.0, 3.0]]


def test_order_is_linear_norm_activation_dropout_and_the_linear_has_no_bias() -> None:
    block = MaskBlock(mask_dim=3, input_dim=4, output_dim=5, dropout=0.5, reduction_ratio=0.5)
    kinds = [type(part) for part in block.hidden]
    assert kinds == [nn.Linear, nn.LayerNorm, nn.ReLU, Dropout]
    assert block.hidden[0].bias is None
    assert block.mask[0].weight.shape == (2, 3)
    assert block.mask[2].weight.shape == (4, 2)


def test_layer_norm_is_over_the_outputs_of_a_row() -> None:
    block = MaskBlock(mask_dim=1, input_dim=1, output_dim=2, activation="leaky_relu")
    with torch.no_grad():
        block.mask[2].weight.zero_()
        block.mask[2].bias.fill_(1.0)
        block.hidden[0].weight.copy_(torch.tensor([[100.0], [300.0]]))
    # (100, 300) becomes (-1, 1); the leaky rectifier keeps a hundredth of what is negative
    out = block(torch.ones(1, 1), torch.ones(1, 1))
    assert out[0].tolist() == pytest.approx([-0.01, 1.0], abs=1e-4)


def test_field_norm_treats_each_field_alone() -> None:
    norm = FieldNorm(num_fields=2, dim=2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        norm.bias.copy_(torch.tensor([[0.0, 0.0], [0.5, 0.5]]))
    x = torch.tensor([[[100.0, 300.0], [-700.0, -900.0]]])
    # fields become (-1, 1) and (1, -1)
    expected = [[[-1.0, 2.0], [3.5, -3.5]]]
    torch.testing.assert_close(norm(x), torch.tensor(expected), atol=1e-4, rtol=0)
