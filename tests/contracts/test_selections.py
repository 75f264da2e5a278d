"""Every selection method, around every kind of table and two kinds of model, trains its phases,
loses its closed rows and is served as it was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from recsys.build import Assembly, build
from recsys.bundle import ServingGraph, export_verified
from recsys.config import parse_config
from recsys.data import encoded, splits
from recsys.embeddings.compact import described
from recsys.models import MODELS
from recsys.selection import SELECTIONS
from recsys.testing import World, world
from recsys.testing.models import check_export_equals_eager, check_script_equals_eager
from recsys.testing.world import shake
from recsys.training.trainer import Trainer
from recsys.types import InputError
from serving.scorer import Scorer

METHODS: dict[str, dict[str, Any]] = {
    "optfs": {"method": "optfs", "strength": 0.01, "gate_step": 0.6, "search_epochs": 3},
    "optembed": {"method": "optembed", "keep": 0.4, "search_epochs": 2, "generations": 2},
    "magnitude": {"method": "magnitude", "keep": 0.5},
    "dedup": {"method": "dedup", "keep": 0.6, "block_rows": 3},
    "deeplight": {"method": "deeplight", "keep": 0.3, "every": 2, "prune_epochs": 2},
    "dsl": {"method": "dsl", "keep": 0.3, "every": 2, "grow_epochs": 2},
    "dnis": {"method": "dnis", "keep": 0.2, "search_epochs": 1, "search_share": 0.3},
    "autodim": {"method": "autodim", "search_epochs": 2, "logit_step": 5.0, "size_penalty": 10.0},
    "pep": {"method": "pep", "keep": 0.2, "threshold_step": 10.0, "search_epochs": 3},
}
ELEMENTS = {"dnis", "pep", "optembed", "deeplight", "dsl", "autodim"}
"""Methods that decide about single weights or columns: `ElementSelection`."""
TABLES: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "embedding_dim": 8},
    "hash": {"method": "hash", "embedding_dim": 8, "compression": 0.7, "exact_below": 0},
    "unified": {
        "method": "unified",
        "embedding_dim": 8,
        "lookups": 2,
        "rows": 40,
        "exact_below": 0,
    },
    "mixed_dim": {
        "method": "mixed_dim",
        "embedding_dim": 8,
        "alpha": 0.3,
        "blocks": {"item": {"cuts": [0.4]}},  # tables with a zero row, several slots a field
    },
}
MODEL_NAMES = ("deepfm", "autoint")
REFUSED = {
    ("optembed", "unified"): "share rows",
    ("autodim", "unified"): "one row",
    ("autodim", "mixed_dim"): "one row",
}
"""Methods that decide feature by feature, and tables whose rows features share."""
CASES = [(m, t) for m in METHODS for t in TABLES if (m, t) not in REFUSED]
# the process that verifies takes seconds: every table once, every model once
SERVED = [(m, t, "deepfm") for m, t in CASES] + [
    (m, "full" if m == "autodim" else "mixed_dim", "autoint") for m in METHODS
]


def test_every_method_has_a_case() -> None:
    assert set(METHODS) == set(SELECTIONS)


@pytest.mark.parametrize(("method", "table"), REFUSED)
def test_refused_in_one_line(method: str, table: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=REFUSED[method, table]) as error:
        selected(tmp_path, method, table, "deepfm")
    assert "\n" not in str(error.value)


def selected(folder: Path, method: str, table: str, model: str) -> World:
    """A world whose model is wrapped."""
    plain = world(folder, model=MODELS[model].example(), embedding=TABLES[table])
    tree = plain.config.model_dump(mode="json")
    train = {**tree["train"], "max_epochs": 2, "batch_size": 64, "learning_rate": 0.01}
    config = parse_config({**tree, "selection": METHODS[method], "train": train})
    return replace(plain, config=config, assembly=build(config, plain.features))


def trained(folder: Path, small: World) -> Assembly:
    assembly = small.assembly
    source = splits(small.config.data, str(folder)).train
    rows = encoded(source, small.features, assembly.id_map, small.config.data, folder / "cache")
    loop = Trainer(model=assembly.model, config=small.config.train, seed=0)
    loop.fit(rows, rows, assembly.phases())
    return assembly


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize(("method", "table"), CASES)
def test_wrapped_model_is_the_plain_one_and_obeys_the_laws(
    method: str, table: str, model: str, tmp_path: Path
) -> None:
    small = selected(tmp_path, method, table, model)
    plain = build(small.config.model_copy(update={"selection": None}), small.features)
    assert torch.equal(small.model(small.rows()), plain.model(small.rows()))
    check_script_equals_eager(small)


@pytest.mark.parametrize("model", MODEL_NAMES)
@pytest.mark.parametrize(("method", "table"), CASES)
def test_trained_and_packed(method: str, table: str, model: str, tmp_path: Path) -> None:
    small = selected(tmp_path, method, table, model)
    assembly = trained(tmp_path, small)
    assembly.model.eval()
    selection = assembly.selection
    assert selection is not None
    report, before = selection.report(), assembly.memory()
    if method in ELEMENTS:
        assert 0 < report["parameters_kept"] < report["parameters"]
        assert 0 < report["rows_kept"] <= report["rows"]
    else:
        assert 0 < report["rows_kept"] < report["rows"]
    masked = assembly.model(small.rows())

    final = assembly.finalise()
    packed = replace(small, assembly=final)
    assert torch.equal(final.model(packed.rows()), masked)
    for place, layer in enumerate(final.layers):
        if "forms" in report:  # by bytes: with all rows, or without the closed ones
            assert [described(store) for store in layer.tables] == report["forms"][place]
        elif method == "dedup":  # no row is closed
            assert sum(len(store.weight) for store in layer.tables) == report["rows_kept"]
        elif method not in ELEMENTS:
            assert sum(len(store.weight) - 1 for store in layer.tables) == report["rows_kept"]
            assert all(not store.weight[-1].any() for store in layer.tables)
        for f, field in enumerate(layer.fields):
            if field.num_ids is not None:
                assert layer.all_vectors(f).shape == (field.num_ids, layer.dim)
    assert final.memory().stored_bytes < before.stored_bytes
    assert final.memory().trainable_params < before.trainable_params

    # a fresh build that assumes the sizes takes the weights
    again = build(small.config, small.features)
    assert again.selection is not None
    again.selection.assume(report)
    expected, fresh = serving_graph(final), serving_graph(again.finalise())
    fresh.load_state_dict(expected.state_dict())
    assert torch.equal(fresh(*small.raw()), expected(*small.raw()))


@pytest.mark.parametrize(("method", "table", "model"), SERVED)
def test_served_with_torch_alone(method: str, table: str, model: str, tmp_path: Path) -> None:
    small = selected(tmp_path, method, table, model)
    assembly = trained(tmp_path, small)
    assembly.model.eval()
    masked = torch.sigmoid(assembly.model(small.rows()))
    final = assembly.finalise()
    verified = export_verified(
        final.model,
        final.encoder,
        final.id_map,
        small.features.inputs,
        tmp_path / "bundle",
        manifest={},
        features=small.features,
        rows=small.table,
    )
    assert verified.max_abs_diff <= 1e-6
    scores = torch.from_numpy(Scorer(tmp_path / "bundle").predict(small.table))
    torch.testing.assert_close(scores, masked, atol=1e-6, rtol=0)
    assert_bytes_on_disk(tmp_path / "bundle" / "weights.safetensors", final)


@pytest.mark.parametrize("table", TABLES)
def test_packed_model_scripts_and_exports(table: str, tmp_path: Path) -> None:
    """At any batch size, with random rows closed and weights that show differences."""
    small = selected(tmp_path, "magnitude", table, "deepfm")
    selection = small.assembly.selection
    shake(small.model)
    selection.close(selection.chosen())  # type: ignore[union-attr]
    packed = replace(small, assembly=small.assembly.finalise())
    check_script_equals_eager(packed)
    check_export_equals_eager(packed)


def serving_graph(assembly: Assembly) -> ServingGraph:
    return ServingGraph(
        encoder=assembly.encoder, id_map=assembly.id_map, model=assembly.model
    ).eval()


def assert_bytes_on_disk(weights: Path, final: Assembly) -> None:
    """What `memory()` says the tables take is what they take in the file of weights, but for the
    buffers that are code (salts, offsets) and live in the graph alone."""
    with safe_open(weights, "pt") as file:
        held = {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if "stores" in name or "remap" in name or ".numeric." in name or ".combine." in name
        }
    on_disk = sum(t.numel() * t.element_size() for t in held.values())
    in_graph = {
        id(buffer): buffer
        for part in (*final.layers, final.id_map)
        for name, buffer in part.named_buffers()
        if name not in part.state_dict()
    }
    on_disk += sum(b.numel() * b.element_size() for b in in_graph.values())
    assert abs(final.memory().stored_bytes - on_disk) <= 0.05 * on_disk
