"""Wide & Deep, DCN, xDeepFM and FiBiNET: their sums of parts, and the sizes that were published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lookup_double import Lookup, batch, build, fields

from recsys.config import load_config
from recsys.models.dcn import DCNConfig
from recsys.models.fibinet import FiBiNET, FiBiNETConfig
from recsys.models.wide_deep import WideDeepConfig
from recsys.models.xdeepfm import XDeepFMConfig
from recsys.types import Batch, InputError

CONFIGS = Path(__file__).parents[2] / "configs"
FRAPPE_ROWS = 5389  # of the published embedding tables


def first_order(layer: Lookup, data: Batch) -> torch.Tensor:
    """``sum_f w_f`` value by value."""
    total = (data.floats * layer.vectors[:, 0]).sum(1)
    for c in range(data.ids.shape[1]):
        total = total + layer.rows[c * 10 + data.ids[:, c], 0]
    return total


# Total parameters in the published Frappe_x1 logs, and weights per table row (embedding 10, and 1
# where the model has first-order weights).
@pytest.mark.parametrize(
    ("name", "published", "per_row"),
    [
        ("wide_deep", 423_280, 11),
        ("dcn", 418_591, 10),
        ("xdeepfm", 429_809, 11),
        ("fibinet", 743_480, 11),
    ],
)
def test_as_many_parameters_as_published(name: str, published: int, per_row: int) -> None:
    config = load_config(CONFIGS / f"frappe_{name}.yaml").model
    model = build(config, numerics=0, categoricals=10, dim=10)
    tables = [m for m in model.modules() if isinstance(m, Lookup)]
    assert sum(table.dim for table in tables) == per_row
    in_tables = sum(p.numel() for table in tables for p in table.parameters())
    outside = sum(p.numel() for p in model.parameters()) - in_tables
    assert outside == published - per_row * FRAPPE_ROWS


def test_wide_deep_is_the_sum_of_its_parts() -> None:
    model, data = build(WideDeepConfig(hidden_units=(8, 4))), batch(6)
    deep = model.mlp(model.embedding(data).flatten(1)).squeeze(1)
    torch.testing.assert_close(model(data), first_order(model.first_order, data) + deep)


def test_dcn_reads_crosses_and_mlp_side_by_side() -> None:
    model, data = build(DCNConfig(layers=2, hidden_units=(8,))), batch(6)
    x = model.embedding(data).flatten(1)
    weight = model.output.weight[0]
    crossed, deep = weight[: x.shape[1]], weight[x.shape[1] :]
    expected = model.crosses(x) @ crossed + model.mlp(x) @ deep + model.output.bias
    torch.testing.assert_close(model(data), expected)


def test_xdeepfm_is_the_sum_of_its_parts() -> None:
    model, data = build(XDeepFMConfig(cin_units=(6, 4), hidden_units=(8,))), batch(6)
    x = model.embedding(data)
    crossed = model.cin(x) @ model.output.weight[0] + model.output.bias
    deep = model.mlp(x.flatten(1)).squeeze(1)
    torch.testing.assert_close(model(data), first_order(model.first_order, data) + crossed + deep)


@pytest.mark.parametrize("kind", ["field_all", "field_each", "field_interaction"])
def test_shared_bilinear_pairs_scale_with_both_weights(kind: str) -> None:
    """``(a_i x_i W) * (a_j x_j) = a_i a_j (x_i W) * x_j``: what the MLP sees is the raw pairs, and
    the raw pairs times the two fields' weights."""
    config = FiBiNETConfig(bilinear=kind, shared_bilinear=True, wide=False, hidden_units=(8,))
    model, data = build(config), batch(6)
    x = model.embedding(data)
    a = model.senet.weights(x.mean(2))  # (B, F)
    raw = model.bilinear[0](x).view(6, 10, 4)
    i, j = torch.triu_indices(5, 5, 1)
    reweighted = raw * (a[:, i] * a[:, j]).unsqueeze(2)
    expected = model.mlp(torch.cat([raw.flatten(1), reweighted.flatten(1)], 1)).squeeze(1)
    torch.testing.assert_close(model(data), expected)


def test_fibinet_with_two_sets_of_matrices_and_first_order() -> None:
    model, data = build(FiBiNETConfig(hidden_units=(8,))), batch(6)
    x = model.embedding(data)
    raw, reweighted = model.bilinear
    assert not torch.equal(raw.weight, reweighted.weight)
    top = torch.cat([raw(x), reweighted(model.senet(x))], 1)
    expected = first_order(model.wide[0], data) + model.mlp(top).squeeze(1)
    torch.testing.assert_close(model(data), expected)


def test_fibinet_needs_two_fields() -> None:
    layers = {"embedding": Lookup(0, 1, 4), "first_order": Lookup(0, 1, 1)}
    with pytest.raises(InputError, match="two fields"):
        FiBiNET(FiBiNETConfig(), fields(0, 1), layers)  # type: ignore[arg-type]
