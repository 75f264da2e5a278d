"""FGCNN's generator against loops, torch's own convolution, and perturbed inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from recsys.layers.feature_generation import FeatureGeneration
from recsys.layers.field_convolution import FieldConvolution


def convolution(fields: int, height: int, pooling: int, **settings: bool) -> FieldConvolution:
    torch.manual_seed(fields)
    return FieldConvolution(
        num_fields=fields, in_channels=2, out_channels=3, height=height, pooling=pooling, **settings
    )


def generation(fields: int, blocks: int = 2, *, dim: int = 4, height: int = 3) -> FeatureGeneration:
    torch.manual_seed(fields)
    return FeatureGeneration(
        num_fields=fields,
        dim=dim,
        output_dim=dim,
        channels=[5] * blocks,
        heights=[height] * blocks,
        pooling=[2] * blocks,
        recombined=[2] * blocks,
    )


def test_a_convolution_by_hand() -> None:
    block = FieldConvolution(num_fields=3, in_channels=1, out_channels=1, height=3, pooling=2)
    with torch.no_grad():
        block.weight.copy_(torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
        block.norm.bias.fill_(0.05)
    # rows: .2*1 + .3*2, .1*1 + .2*2 + .3*(-1), .1*2 + .2*(-1), each + .05; groups (0, 1) and (2)
    expected = [math.tanh(0.85), math.tanh(0.05)]
    assert block(torch.tensor([[[1.0, 2.0, -1.0]]])).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("pooling", [1, 2, 3, 4])
@pytest.mark.parametrize(("fields", "height"), [(1, 7), (3, 1), (9, 3), (11, 7)])
def test_equals_conv2d_norm_tanh_and_pool(
    fields: int, height: int, pooling: int, batch_norm: bool
) -> None:
    block = convolution(fields, height, pooling, batch_norm=batch_norm).double()
    conv = nn.Conv2d(2, 3, (height, 1), padding=(height // 2, 0), bias=not batch_norm).double()
    norm = nn.BatchNorm2d(3).double() if batch_norm else nn.Identity()
    with torch.no_grad():
        conv.weight.copy_(block.weight.permute(2, 1, 0).unsqueeze(3))
        if conv.bias is not None:
            block.norm.bias.copy_(conv.bias)
        else:
            block.norm.weight.copy_(torch.tensor([0.5, -2.0, 1.5]))  # a falling channel, too
            norm.weight.copy_(block.norm.weight)
    pool = nn.MaxPool2d((pooling, 1), ceil_mode=True)
    x = torch.randn(6, 2, fields, 5, dtype=torch.float64, requires_grad=True)  # (B, A, F, D)

    def ours(x: Tensor) -> Tensor:
        out = block(x.permute(0, 3, 2, 1).flatten(2))  # (B, D, F' * C)
        return out.unflatten(2, (-1, 3)).permute(0, 3, 2, 1)  # (B, C, F', D)

    for training in (True, False):
        block.train(training)
        norm.train(training)
        expected = pool(torch.tanh(norm(conv(x))))
        assert expected.shape == (6, 3, math.ceil(fields / pooling), 5)
        given = ours(x)
        torch.testing.assert_close(given, expected)
        wanted = torch.autograd.grad(expected.sin().sum(), x)
        torch.testing.assert_close(torch.autograd.grad(given.sin().sum(), x), wanted)
    if batch_norm:
        torch.testing.assert_close(block.norm.running_var, norm.running_var)


@pytest.mark.parametrize("fields", [1, 2, 3, 10, 23, 39, 60])
@pytest.mark.parametrize(
    ("pooling", "recombined"), [((2,), (2,)), ((2, 2, 2), (2, 2, 2)), ((3, 4, 1), (1, 2, 3))]
)
def test_number_of_new_features(
    fields: int, pooling: tuple[int, ...], recombined: tuple[int, ...]
) -> None:
    rows, expected = fields, 0
    for pool, new in zip(pooling, recombined, strict=True):
        rows = -(-rows // pool)
        expected += rows * new
    blocks = len(pooling)
    generate = FeatureGeneration(
        num_fields=fields,
        dim=3,
        output_dim=6,
        channels=(4, 5, 6)[:blocks],
        heights=(7, 5, 1)[:blocks],
        pooling=pooling,
        recombined=recombined,
        batch_norm=True,
    )
    assert generate.features == expected
    for count in (0, 1, 4):
        assert generate(torch.randn(count, fields, 3)).shape == (count, expected, 6)


@pytest.mark.parametrize("height", [1, 3, 5])
def test_a_convolved_row_sees_its_window_only(height: int) -> None:
    block = FieldConvolution(num_fields=10, in_channels=1, out_channels=4, height=height, pooling=2)
    x = torch.randn(2, 3, 10)
    before = block(x).unflatten(2, (5, 4))
    for field in range(10):
        y = x.clone()
        y[:, :, field] += 100.0
        moved = (block(y).unflatten(2, (5, 4)) != before).any(3).any(1).any(0).tolist()
        for row in range(5):  # of fields 2 * row and 2 * row + 1
            reached = 2 * row - height // 2 <= field <= 2 * row + 1 + height // 2
            assert moved[row] == reached, (field, row)


def test_positions_of_the_vectors_do_not_mix_in_the_convolution() -> None:
    block = convolution(6, 3, 2).eval()
    x = torch.randn(1, 4, 12)
    y = x.clone()
    y[:, 2] += 1.0
    assert (block(x) != block(y)).any(2)[0].tolist() == [False, False, True, False]


def test_every_new_feature_sees_every_field() -> None:
    generate = generation(9, blocks=2).eval()
    x = torch.randn(1, 9, 4, requires_grad=True)
    new = generate(x)[0]  # (M, D)
    assert len(new) == 2 * 5 + 2 * 3
    for feature in new:
        (gradient,) = torch.autograd.grad(feature.sum(), x, retain_graph=True)
        assert (gradient[0].abs().sum(1) > 0).all()


def test_recombination_is_one_linear_map_of_all_channels() -> None:
    generate, x = generation(5, blocks=1), torch.randn(3, 5, 4)
    h = generate.convolutions[0](x.transpose(1, 2))  # (B, D, F' * C)
    weight, bias = generate.recombinations[0].weight, generate.recombinations[0].bias
    expected = torch.tanh(torch.einsum("oi,bi->bo", weight, h.reshape(3, -1)) + bias)
    torch.testing.assert_close(generate(x), expected.view(3, 6, 4))


def test_a_short_last_group_is_not_filled_with_zeros() -> None:
    block = FieldConvolution(num_fields=3, in_channels=1, out_channels=2, height=1, pooling=2)
    with torch.no_grad():
        block.weight.zero_()
        block.norm.bias.fill_(-1.0)
    torch.testing.assert_close(block(torch.zeros(1, 1, 3)), torch.full((1, 1, 4), math.tanh(-1)))


def test_weights_start_as_those_of_conv2d() -> None:
    torch.manual_seed(0)
    block = FieldConvolution(num_fields=4, in_channels=20, out_channels=50, height=5, pooling=2)
    assert block.weight.abs().max().item() == pytest.approx(0.1, rel=0.01)  # 1 / sqrt(20 * 5)
    assert block.weight.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)
    assert not block.norm.bias.any()
