"""MaskNet: both structures from their equations, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lookup_double import batch, build
from pydantic import ValidationError
from torch import Tensor

from recsys.layers.dropout import Dropout
from recsys.models import MODELS
from recsys.types import InputError


def masknet(**settings: Any) -> Any:
    return MODELS["masknet"].Config(**settings)


def one_block(block: Any, e: Tensor, h: Tensor) -> Tensor:
    """The paper's equations, from the block's weights, with LN written out."""
    first, _, second = block.mask
    mask = (e @ first.weight.T + first.bias).clamp_min(0) @ second.weight.T + second.bias
    out = (mask * h) @ block.hidden[0].weight.T
    centred = out - out.mean(1, keepdim=True)
    out = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return (out * block.hidden[1].weight + block.hidden[1].bias).clamp_min(0)


def field_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(2, keepdim=True)
    return centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()


def test_serial_by_its_equations() -> None:
    model, data = build(masknet(hidden_units=(6, 5))).eval(), batch(4)
    x = model.embedding(data)
    e, h = x.flatten(1), field_norm(x).flatten(1)
    for block in model.blocks:
        h = one_block(block, e, h)
    expected = h @ model.top.weight[0] + model.top.bias
    torch.testing.assert_close(model(data), expected)
    assert [block.hidden[0].weight.shape for block in model.blocks] == [(6, 20), (5, 6)]


def test_parallel_blocks_all_read_the_field_vectors() -> None:
    settings = {"structure": "parallel", "blocks": 3, "block_dim": 4, "hidden_units": (5,)}
    model, data = build(masknet(**settings, embedding_norm=False)).eval(), batch(4)
    e = model.embedding(data).flatten(1)
    joined = torch.cat([one_block(block, e, e) for block in model.blocks], 1)  # (B, 12)
    hidden, _, output = model.top.layers
    top = (joined @ hidden.weight.T + hidden.bias).clamp_min(0)
    torch.testing.assert_close(model(data), top @ output.weight[0] + output.bias)


def test_parallel_defaults_are_one_block_of_64() -> None:
    model = build(masknet(structure="parallel"))
    assert [block.hidden[0].weight.shape for block in model.blocks] == [(64, 20)]
    assert model.top.layers[0].weight.shape == (64, 64)


def test_dropout_follows_blocks_and_hidden_layers() -> None:
    model = build(masknet(structure="parallel", blocks=2, hidden_units=(4, 4), dropout=0.3))
    assert [m.p for m in model.modules() if isinstance(m, Dropout)] == [0.3] * 4


def test_reference_size_on_frappe() -> None:
    settings = {"structure": "parallel", "blocks": 3, "block_dim": 50, "embedding_norm": False}
    config = masknet(**settings, hidden_units=(400, 400, 400), reduction_ratio=2)
    model = build(config, numerics=0, categoricals=10, dim=10)
    network = sum(p.numel() for p in model.parameters()) - 10 * 10 * 10
    # what the published run reports, 571,691, less its 5,389 vectors of width 10
    assert network == 571_691 - 53_890


def test_configs_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="structure serial has one mask block per entry"):
        masknet(blocks=2)
    with pytest.raises(ValidationError, match="remove blocks and block_dim"):
        masknet(block_dim=8)
    with pytest.raises(InputError, match=r"reduction_ratio 0.1 .* 8 inputs; give at least 0.125"):
        build(masknet(hidden_units=(8, 4), reduction_ratio=0.1))
    with pytest.raises(InputError, match=r"3 inputs; give at least 0.334"):
        build(masknet(hidden_units=(3, 4), reduction_ratio=0.1))
    build(masknet(hidden_units=(3, 4), reduction_ratio=0.334))  # the advice works
