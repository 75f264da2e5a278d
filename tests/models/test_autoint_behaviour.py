"""AutoInt's behaviour through its whole forward pass and on real embedding layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lookup_double import batch, build
from torch import Tensor, nn

from recsys.models import MODELS
from recsys.testing.world import shake, world
from recsys.types import Batch

CODE_BASES: dict[str, dict[str, Any]] = {
    "fuxictr": {},
    "fuxictr best": {"scale": True, "layer_norm": "before_relu", "wide": True},
    "official": {
        "scale": True,
        "residual": "projected",
        "relu_projections": True,
        "layer_norm": "after_relu",
    },
    "paper": {"residual": "projected"},
    "bare": {"residual": "none"},
}


def autoint(**settings: Any) -> Any:
    settings = {"hidden_units": (), "heads": 2, **settings}
    return MODELS["autoint"].Config(**settings)


class Reordered(nn.Module):
    """An embedding layer whose fields come in another order."""

    def __init__(self, inner: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.inner, self.order, self.dim = inner, order, inner.dim

    def forward(self, rows: Batch) -> Tensor:
        return self.inner(rows)[:, self.order]  # (B, F, D)


@pytest.mark.parametrize("flags", CODE_BASES)
def test_fields_have_no_order_but_that_of_the_output_weights(flags: str) -> None:
    """Section 1e (1), on forward itself: permuted fields, permuted output columns, same logits;
    the maps are those of before with rows and columns permuted."""
    model, data = build(autoint(**CODE_BASES[flags])).eval(), batch(6)
    logits, maps = model.forward_with_attention(data)
    order = torch.tensor([3, 0, 4, 1, 2])
    model.embedding = Reordered(model.embedding, order)
    assert not torch.allclose(model(data), logits, atol=1e-3)
    with torch.no_grad():
        model.output.weight.copy_(model.output.weight.view(5, 8)[order].reshape(1, 40))
    torch.testing.assert_close(model(data), logits)
    _, moved = model.forward_with_attention(data)
    for before, after in zip(maps, moved, strict=True):
        torch.testing.assert_close(after, before[:, :, order][:, :, :, order])


@pytest.mark.parametrize("flags", CODE_BASES)
def test_maps_are_those_of_the_forward_pass_and_sum_to_one(flags: str) -> None:
    model, data = build(autoint(dropout=0.5, **CODE_BASES[flags])).eval(), batch(7)
    logits, maps = model.forward_with_attention(data)
    torch.testing.assert_close(logits, model(data))
    assert len(maps) == 2
    for attention in maps:
        assert attention.shape == (7, 2, 5, 5)
        assert (attention >= 0).all()
        torch.testing.assert_close(attention.sum(-1), torch.ones(7, 2, 5))
    # Dropout of attention weights breaks the sums, so that explanations must be in eval mode.
    _, dropped = model.train().forward_with_attention(data)
    assert not torch.allclose(dropped[0].sum(-1), torch.ones(7, 2, 5))


def test_attention_reads_from_the_row_field_to_the_column_field() -> None:
    """By hand, one head of width 1: field m gives weight softmax_k(q_m k_k) to field k."""
    config = autoint(layers=1, heads=1, attention_dim=1)
    model, data = build(config).eval(), batch(3)
    query, key = model.interacting[0].weight.detach()[:2, 0]  # (D,), (D,)
    with torch.no_grad():
        _, (attention,) = model.forward_with_attention(data)
        x = model.embedding(data)
    for b in range(3):
        for m in range(5):
            scores = [float((x[b, m] @ query) * (x[b, k] @ key)) for k in range(5)]
            expected = torch.tensor(scores).softmax(0)
            torch.testing.assert_close(attention[b, 0, m], expected)


def test_doubling_a_number_doubles_its_vector_in_the_real_layer(tmp_path: Path) -> None:
    """Section 1e (4) on an `EmbeddingLayer`, exactly; a missing number has a vector of its own,
    so that it is neither zero nor moved."""
    tried = world(tmp_path, model=autoint())
    shake(tried.model)
    rows = tried.rows()
    names = [field.name for field in tried.features.fields]
    place = names.index("price")
    known = ~rows.floats[:, 0].isnan()
    doubled = Batch(rows.ids, 2 * rows.floats, rows.lists, rows.lengths)
    before, after = tried.model.embedding(rows), tried.model.embedding(doubled)
    assert known.any()
    assert not known.all()
    assert torch.equal(after[known, place], 2 * before[known, place])
    assert before[known, place].abs().sum(1).min() > 0
    assert torch.equal(after[~known, place], before[~known, place])
    assert before[~known, place].abs().sum(1).min() > 0
    others = [f for f in range(len(names)) if f != place]
    assert torch.equal(after[:, others], before[:, others])


def test_autoint_plus_is_the_sum_of_autoint_and_its_mlp() -> None:
    """Section 1e (5), the other half: the MLP reads the field vectors and its logit is added."""
    plus, data = build(autoint(hidden_units=(8, 8))).eval(), batch(6)
    plain = build(autoint()).eval()
    plain.load_state_dict({k: v for k, v in plus.state_dict().items() if not k.startswith("deep.")})
    mlp = plus.deep[0](plus.embedding(data).flatten(1)).squeeze(1)
    assert mlp.abs().min() > 0
    torch.testing.assert_close(plus(data), plain(data) + mlp)


@pytest.mark.parametrize("norm", ["none", "before_relu", "after_relu"])
def test_with_a_residual_zero_values_leave_the_row_to_speak(norm: str) -> None:
    """Section 1e (6), its counterpart: it is the residual that kept the logit from being constant;
    without it (and values zero) nothing of the row is left, whatever the normalisation."""
    constant = build(autoint(residual="none", layer_norm=norm)).eval()
    speaking = build(autoint(residual="projected", layer_norm=norm)).eval()
    for model in (constant, speaking):
        with torch.no_grad():
            for layer in model.interacting:
                layer.weight[2] = 0
    assert constant(batch(9)).std() == 0
    assert speaking(batch(9)).std() > 1e-3
