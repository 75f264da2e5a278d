"""What every model of the zoo must do, on stand-in embedding layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lookup_double import batch, build, take
from pydantic import TypeAdapter, ValidationError

from recsys.models import MODELS, ModelConfig
from recsys.types import Batch

CASES: dict[str, dict[str, Any]] = {
    "lr": {"name": "lr"},
    "fm": {"name": "fm"},
    "din_without_a_history": {"name": "din", "hidden_units": [8], "activation": "dice"},
    "dnn": {"name": "dnn", "hidden_units": [8], "batch_norm": True, "dropout": 0.1},
    "deepfm": {"name": "deepfm", "hidden_units": [8, 4]},
    "dcnv2": {"name": "dcnv2", "layers": 2, "hidden_units": [8]},
    "dcnv2_stacked": {"name": "dcnv2", "structure": "stacked", "low_rank": 3, "batch_norm": True},
    "dcnv2_crosses": {"name": "dcnv2", "structure": "crossnet_only"},
    "pnn": {"name": "pnn", "hidden_units": [8], "batch_norm": True, "dropout": 0.1},
    "fgcnn": {
        "name": "fgcnn",
        "channels": [3, 4],
        "kernel_heights": [3, 3],
        "pooling": [2, 2],
        "recombined": [2, 1],
        "conv_batch_norm": False,
        "classifier": {"name": "deepfm", "hidden_units": [8], "batch_norm": True},
    },
    "autoint": {"name": "autoint", "hidden_units": [], "attention_dim": 4},
    "autoint_plus": {"name": "autoint", "heads": 2, "hidden_units": [8], "wide": True},
    "autoint_official": {
        "name": "autoint",
        "hidden_units": [],
        "attention_dim": 16,  # a layer norm of few numbers magnifies rounding
        "scale": True,
        "residual": "projected",
        "relu_projections": True,
        "layer_norm": "after_relu",
    },
    "autoint_norm": {"name": "autoint", "layer_norm": "before_relu", "dropout": 0.1},
    "dlrm": {"name": "dlrm", "hidden_units": [8], "bottom_units": [8], "batch_norm": True},
    "dlrm_cat": {"name": "dlrm", "interaction": "cat", "hidden_units": [8], "activation": "gelu"},
    "gdcn": {"name": "gdcn", "layers": 2, "hidden_units": [8]},
    "gdcn_stacked": {"name": "gdcn", "structure": "stacked", "hidden_units": [8], "dropout": 0.1},
    "afm": {"name": "afm", "attention_dim": 8, "attention_dropout": 0.1, "dropout": 0.1},
    "afn": {"name": "afn", "hidden_units": [8]},
    "afn_plus": {"name": "afn", "hidden_units": [8], "deep_units": [8], "deep_dropout": 0.1},
    "ft_transformer": {"name": "ft_transformer", "width": 8, "heads": 2},
    "ft_transformer_one": {"name": "ft_transformer", "width": 8, "heads": 2, "blocks": 1},
    "wide_deep": {"name": "wide_deep", "hidden_units": [8], "batch_norm": True, "dropout": 0.1},
    "dcn": {"name": "dcn", "layers": 3, "hidden_units": [8]},
    "xdeepfm": {"name": "xdeepfm", "cin_units": [6, 4], "hidden_units": [8]},
    "xdeepfm_one_layer": {"name": "xdeepfm", "cin_units": [5], "hidden_units": [8]},
    "fibinet": {"name": "fibinet", "hidden_units": [8], "reduction_ratio": 2},
    "fibinet_each": {"name": "fibinet", "bilinear": "field_each", "excitation": "sigmoid"},
    "fibinet_shared": {
        "name": "fibinet",
        "bilinear": "field_all",
        "shared_bilinear": True,
        "reduction_ratio": 2,
        "wide": False,
    },
    "masknet": {"name": "masknet", "hidden_units": [8, 6], "dropout": 0.1},
    "masknet_parallel": {
        "name": "masknet",
        "structure": "parallel",
        "blocks": 2,
        "hidden_units": [8],
        "reduction_ratio": 2,
        "embedding_norm": False,
    },
    "final_mlp": {
        "name": "final_mlp",
        "mlp1": {"hidden_units": [8], "batch_norm": True},
        "mlp2": {"hidden_units": [4]},
        "heads": 2,
        "gates": {"hidden_units": [6], "context1": ["x0", "x1"], "context2": ["c0", "c2"]},
    },
    "final_mlp_learned": {"name": "final_mlp", "mlp1": {"hidden_units": [8]}},
    "final_mlp_plain": {"name": "final_mlp", "gates": None},
    "final_net": {"name": "final_net", "block1": {"hidden_units": [8, 4]}, "field_gate": True},
    "final_net_one_branch": {
        "name": "final_net",
        "block1": {"hidden_units": [8], "activation": "relu", "residual": "sum", "dropout": 0.1},
        "block2": None,
    },
    "nasrec": {"name": "nasrec"},
    "nasrec_every_operator": MODELS["nasrec"].example().model_dump(),
}


def config(case: str) -> Any:
    return TypeAdapter(ModelConfig).validate_python(CASES[case])


def test_every_model_is_a_case_and_gives_an_example() -> None:
    assert {case["name"] for case in CASES.values()} == set(MODELS)
    for name, kind in MODELS.items():
        assert kind.example().name == name
        assert isinstance(kind.example(), kind.Config)


@pytest.mark.parametrize("case", CASES)
def test_script_and_export_equal_eager(case: str) -> None:
    model = build(config(case)).eval()
    scripted = torch.jit.script(model)
    any_rows = {0: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(
        model,
        (batch(3),),
        dynamic_shapes=(Batch(any_rows, any_rows, [], any_rows),),
    ).module()
    for rows in (0, 1, 2, 7):
        data = batch(rows)
        with torch.no_grad():
            expected = model(data)
            assert expected.shape == (rows,)
            assert expected.isfinite().all()
            torch.testing.assert_close(scripted(data), expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(exported(data), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_row_scores_the_same_alone(case: str) -> None:
    model, data = build(config(case)).eval(), batch(7)
    alone = torch.cat([model(take(data, [i])) for i in range(7)])
    torch.testing.assert_close(alone, model(data), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_gradient(case: str) -> None:
    model = build(config(case))
    # Behind a batch norm, logits add up to their bias of 0: that would be its gradient's sum, too.
    wanted = torch.linspace(-1, 2, 64)
    (model(batch(64)) - wanted).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("case", CASES)
def test_same_seed_same_weights(case: str) -> None:
    one, two = build(config(case)), build(config(case))
    for name, weights in one.state_dict().items():
        assert torch.equal(weights, two.state_dict()[name]), name


def test_lr_by_hand() -> None:
    model, data = build(config("lr")), batch(1)
    layer = model.first_order
    with torch.no_grad():
        model.bias.fill_(0.25)
    expected = 0.25 + (data.floats[0] * layer.vectors[:, 0]).sum()
    for c in range(3):
        expected = expected + layer.rows[c * 10 + int(data.ids[0, c]), 0]
    torch.testing.assert_close(model(data), expected.reshape(1))


def test_deepfm_is_fm_plus_mlp_on_the_same_table() -> None:
    model, data = build(config("deepfm")), batch(6)
    machine = build(MODELS["fm"].example())
    machine.embedding, machine.first_order = model.embedding, model.first_order
    x = model.embedding(data).flatten(1)
    torch.testing.assert_close(model(data), machine(data) + model.mlp(x).squeeze(1))


def test_dcnv2_structures_by_their_equations() -> None:
    data = batch(5)
    for case in ("dcnv2", "dcnv2_stacked", "dcnv2_crosses"):
        model = build(config(case)).eval()
        x = model.embedding(data).flatten(1)
        crossed = model.crosses(x)
        top = {
            "dcnv2": lambda m, x, c: torch.cat([c, m.mlp(x)], 1),
            "dcnv2_stacked": lambda m, x, c: m.mlp(c),
            "dcnv2_crosses": lambda m, x, c: c,
        }[case](model, x, crossed)
        torch.testing.assert_close(model(data), model.output(top).squeeze(1))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"name": "autoint", "attention_dim": 10, "heads": 4}, "multiple of heads"),
        ({"name": "autoint", "hidden_units": [], "batch_norm": True}, "belong to the MLP"),
        ({"name": "autoint", "hidden_units": [], "activation": "tanh"}, "belong to the MLP"),
        (
            {"name": "autoint", "hidden_units": [], "dropout": 0.1, "attention_dropout": 0.2},
            "dropout belongs to the MLP",
        ),
        ({"name": "autoint", "dropout": 1.0}, "dropout"),
        ({"name": "autoint", "hiden_units": []}, "hiden_units"),
        ({"name": "dcnv2", "structure": "crossnet_only", "hidden_units": [8]}, "no MLP"),
        ({"name": "dcnv2", "structure": "crossnet_only", "activation": "gelu"}, "no MLP"),
        ({"name": "din", "pooling": "mean", "softmax": True}, "pooling mean has no attention"),
        ({"name": "din", "pooling": "mean", "attention_units": [8]}, "choose pooling attention"),
        ({"name": "dnn", "hidden_units": []}, "hidden_units"),
        ({"name": "dnn", "hidden_units": [8, 0]}, "hidden_units"),
        ({"name": "nothing"}, "nothing"),
    ],
)
def test_configs_that_cannot_work_are_refused(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValidationError, match=part):
        TypeAdapter(ModelConfig).validate_python(settings)


@pytest.mark.parametrize("case", CASES)
def test_configs_survive_a_round_trip_through_json(case: str) -> None:
    settings = config(case)
    again = TypeAdapter(ModelConfig).validate_json(settings.model_dump_json())
    assert again == settings
