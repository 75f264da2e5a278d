"""FinalMLP: streams, gates and fusion from their equations; contexts by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lookup_double import batch, build, fields
from pydantic import ValidationError
from torch import Tensor

from recsys.config import parse_config
from recsys.models import MODELS
from recsys.types import Batch, FieldSpec, InputError

STREAMS = {"mlp1": {"hidden_units": (6,)}, "mlp2": {"hidden_units": (4,)}, "heads": 2}


def final_mlp(**settings: Any) -> Any:
    return MODELS["final_mlp"].Config(**{**STREAMS, **settings})


def gate(network: Any, context: Tensor) -> Tensor:
    """``2 sigmoid(W_2 relu(W_1 c + b_1) + b_2)`` from the weights of a gate network."""
    first, _, second = network.layers
    hidden = (context @ first.weight.T + first.bias).clamp_min(0)
    return 2 / (1 + (-(hidden @ second.weight.T + second.bias)).exp())


def fused(model: Any, one: Tensor, two: Tensor) -> Tensor:
    first, second = model.mlp1.layers[0], model.mlp2.layers[0]
    x = (one @ first.weight.T + first.bias).clamp_min(0)  # (B, 6)
    y = (two @ second.weight.T + second.bias).clamp_min(0)  # (B, 4)
    total = x @ model.fusion.linear_x.weight[0] + y @ model.fusion.linear_y.weight[0]
    for h in range(2):
        pieces = (x[:, 3 * h : 3 * h + 3] @ model.fusion.weight[h]) * y[:, 2 * h : 2 * h + 2]
        total = total + pieces.sum(1)
    return total + model.fusion.linear_x.bias


def test_gates_read_their_own_embeddings_of_the_context_fields() -> None:
    gates = {"hidden_units": (5,), "context1": ("c1",), "context2": ("x0", "c2")}
    model, data = build(final_mlp(gates=gates)).eval(), batch(4)
    x = model.embedding(data).flatten(1)  # (B, 20)
    context = model.context[0](data)  # (B, 5, 4): x0, x1, c0, c1, c2
    assert not torch.equal(context, model.embedding(data))
    one = x * gate(model.gates[0].mlp, context[:, 3])
    two = x * gate(model.gates[1].mlp, torch.cat([context[:, 0], context[:, 4]], 1))
    torch.testing.assert_close(model(data), fused(model, one, two))


def test_without_contexts_gates_read_learned_vectors() -> None:
    model, data = build(final_mlp(gates={"hidden_units": (5,)})).eval(), batch(4)
    x = model.embedding(data).flatten(1)
    one, two = (x * gate(part.mlp, part.context.vector) for part in model.gates)
    torch.testing.assert_close(model(data), fused(model, one, two))
    assert len(model.context) == 0
    assert model.gates[0].context.vector.shape == (1, 4)


def test_without_gates_both_streams_see_the_field_vectors() -> None:
    model, data = build(final_mlp(gates=None)).eval(), batch(4)
    x = model.embedding(data).flatten(1)
    torch.testing.assert_close(model(data), fused(model, x, x))
    assert not [name for name, _ in model.named_parameters() if name.startswith("gates")]


def test_gates_start_near_one_and_learned_contexts_can_move() -> None:
    model = build(final_mlp(gates={"hidden_units": ()}))
    model(batch(32)).square().sum().backward()
    for part in model.gates:
        assert (part(torch.zeros(1, 5, 4)) - 1).abs().max() < 0.05
        assert part.context.vector.grad.abs().sum() > 0


def test_a_context_layer_is_asked_for_only_where_one_is_read() -> None:
    tables = MODELS["final_mlp"].tables
    assert tables(final_mlp(), 8) == {"embedding": 8}
    assert tables(final_mlp(gates=None), 8) == {"embedding": 8}
    one_sided = final_mlp(gates={"context2": ("c0",)})
    assert tables(one_sided, 8) == {"embedding": 8, "context": 8}


def test_the_context_of_one_gate_does_not_move_the_other() -> None:
    model = build(final_mlp(gates={"context1": ("c0",), "context2": ("c1",)})).eval()
    data = batch(3)
    ids = data.ids.clone()
    ids[:, 0] = (ids[:, 0] + 1) % 10
    other = Batch(ids, data.floats, data.lists, data.lengths)
    before, after = model.context[0](data), model.context[0](other)
    assert not torch.equal(model.gates[0](before), model.gates[0](after))
    assert torch.equal(model.gates[1](before), model.gates[1](after))


def test_a_context_that_is_no_feature_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"model.gates.context2: 'cc1' .* did you mean 'c1'\?$"):
        build(final_mlp(gates={"context2": ("cc1",)}))
    with pytest.raises(InputError, match=r"'user' is no feature; features: x0, x1, c0, c1, c2$"):
        build(final_mlp(gates={"context1": ("user",)}))
    generated = (*fields(1, 1), FieldSpec("generated 1", "generated"))
    settings = final_mlp(gates={"context1": ("generated 1",)})
    with pytest.raises(InputError, match="'generated 1' is no feature"):
        MODELS["final_mlp"].check(settings, generated)


def test_a_wrong_context_is_found_when_the_config_is_read() -> None:
    tree = {
        "name": "wrong",
        "data": {"train": "train.parquet", "label": "label"},
        "features": {"user": {"type": "categorical"}},
        "embedding": {"method": "full"},
        "model": {"name": "final_mlp", "gates": {"context1": ["usr"]}},
    }
    with pytest.raises(InputError, match=r"context1: 'usr' is no feature; did you mean 'user'\?"):
        parse_config(tree)


@pytest.mark.parametrize("stream", ["mlp1", "mlp2"])
def test_heads_must_divide_both_streams(stream: str) -> None:
    settings = {"mlp1": {"hidden_units": (8, 6)}, "mlp2": {"hidden_units": (9,)}, "heads": 3}
    settings[stream] = {"hidden_units": (6, 8)}
    with pytest.raises(ValidationError, match=rf"last of {stream}.hidden_units, 8, .* heads 3"):
        final_mlp(**settings)


def test_generated_fields_are_gated_and_read_like_others() -> None:
    config = final_mlp(gates={"context1": ("c0",)})
    plain = build(config)

    class Wider(torch.nn.Module):
        dim = 4

        def forward(self, rows: Batch) -> Tensor:
            x = plain.embedding(rows)
            return torch.cat([x, x[:, :2] * x[:, 1:3]], 1)  # (B, 7, D)

    known = [*fields(2, 3), *(FieldSpec(f"generated {i}", "generated") for i in (1, 2))]
    layers: dict[str, Any] = {"embedding": Wider(), "context": plain.context[0]}
    model = MODELS["final_mlp"](config, known, layers)
    assert model.mlp1.layers[0].weight.shape == (6, 28)
    assert model.gates[0].context.places.tolist() == [2]
    assert model(batch(3)).shape == (3,)


def test_reference_size_on_frappe() -> None:
    stream = {"batch_norm": True, "dropout": 0.4}
    config = final_mlp(
        mlp1={"hidden_units": (400,), **stream},
        mlp2={"hidden_units": (100,), **stream},
        heads=5,
        gates={"hidden_units": (400,), "context1": ("c0",), "context2": ("c1",)},
    )
    model = build(config, numerics=0, categoricals=10, dim=10)
    network = sum(p.numel() for p in model.parameters()) - 2 * 10 * 10 * 10
    # what the published run reports, 253,392, less its 5,399 vectors and 956 + 4,084 of contexts,
    # and less the second bias of the fusion
    assert network == 253_392 - 53_990 - 50_400 - 1


def test_the_same_field_may_be_the_context_of_both_gates() -> None:
    model, data = build(final_mlp(gates={"context1": ("c0",), "context2": ("c0",)})), batch(8)
    assert len(model.context) == 1
    context = model.context[0](data)
    assert torch.equal(model.gates[0].context(context), model.gates[1].context(context))
