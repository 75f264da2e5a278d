"""A live model from a bundle: the same scores, or a clear refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys.build import build
from recsys.bundle import export
from recsys.bundle.rebuild import CannotRebuild, rebuild
from recsys.config import parse_config
from recsys.testing.world import World, shake, world
from recsys.types import InputError
from serving.bundle import Bundle, file_digest, open_bundle
from serving.scorer import Scorer

TABLES: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "embedding_dim": 8},
    "unified": {"method": "unified", "embedding_dim": 8, "lookups": 2, "budget": 0.5},
    "mixed_dim": {"method": "mixed_dim", "embedding_dim": 8, "budget": 0.8},
}


def exported(folder: Path, table: str = "full", **manifest: Any) -> tuple[World, Path]:
    """A bundle of an AutoInt whose weights are not those that its config and seed would draw."""
    model = {"name": "autoint", "heads": 2, "hidden_units": [8], "wide": True}
    tried = world(folder, model=model, embedding=TABLES[table])
    shake(tried.model)
    parts = tried.assembly.finalise()
    content = {"config": tried.config.model_dump(mode="json"), **manifest}
    features = tried.features
    bundle = folder / "bundle"
    export(
        parts.model,
        parts.encoder,
        parts.id_map,
        features.inputs,
        bundle,
        manifest=content,
        features=features,
    )
    return tried, bundle


def with_weights(bundle: Path, change: Any) -> Bundle:
    """The bundle with other weights beside its graph, correctly signed."""
    path = bundle / "weights.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return open_bundle(bundle)


@pytest.mark.parametrize("table", TABLES)
def test_the_rebuilt_model_scores_as_the_bundle(tmp_path: Path, table: str) -> None:
    tried, bundle = exported(tmp_path, table)
    opened = open_bundle(bundle)
    rebuilt = rebuild(opened)
    scores = Scorer(opened).predict(tried.table)
    assert rebuilt.check(tried.raw(), scores) <= 1e-6
    assert not any(module.training for module in rebuilt.graph.modules())
    before = rebuilt.graph(*tried.raw()).detach().numpy()
    np.testing.assert_allclose(before, scores, atol=1e-6)
    assert scores.std() > 0.01


def test_a_difference_above_the_tolerance_is_refused(tmp_path: Path) -> None:
    tried, bundle = exported(tmp_path)
    opened = open_bundle(bundle)
    scores = Scorer(opened).predict(tried.table)
    rebuilt = rebuild(opened)
    scores[3] += 1e-4
    with pytest.raises(CannotRebuild, match=r"scores up to 1\.0e-04 apart .* export it again"):
        rebuilt.check(tried.raw(), scores)
    scores[3] = np.nan
    with pytest.raises(CannotRebuild, match="apart"):
        rebuilt.check(tried.raw(), scores)
    looser = replace(
        rebuilt,
        config=rebuilt.config.model_copy(
            update={"export": rebuilt.config.export.model_copy(update={"tolerance": 1e-3})}
        ),
    )
    scores[3] = Scorer(opened).predict(tried.table)[3] + 1e-4
    assert looser.check(tried.raw(), scores) == pytest.approx(1e-4, rel=0.05)


def test_other_weights_than_the_graph_holds_are_noticed(tmp_path: Path) -> None:
    tried, bundle = exported(tmp_path)

    def bend(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.output.weight"] += 0.1

    opened = with_weights(bundle, bend)
    with pytest.raises(CannotRebuild, match="apart from the bundle"):
        rebuild(opened).check(tried.raw(), Scorer(opened).predict(tried.table))


@pytest.mark.parametrize("kind", ["packed", "missing", "unexpected"])
def test_weights_that_do_not_fit_are_one_clear_line(tmp_path: Path, kind: str) -> None:
    _, bundle = exported(tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        table = max(
            (name for name in tensors if "embedding" in name and tensors[name].ndim == 2),
            key=lambda name: tensors[name].numel(),
        )
        if kind == "packed":
            tensors[table] = tensors[table][::2].contiguous()
        elif kind == "missing":
            del tensors[table]
        else:
            tensors["model.remap"] = torch.zeros(3)

    opened = with_weights(bundle, change)
    with pytest.raises(CannotRebuild) as raised:
        rebuild(opened)
    line = str(raised.value)
    assert "\n" not in line
    assert line.startswith(str(bundle))
    assert "do not fit the model that its config describes" in line
    assert {"packed": "size mismatch", "missing": "Missing key", "unexpected": "remap"}[
        kind
    ] in line


@pytest.mark.parametrize("config", [None, {}, {"name": "x", "modell": {}}])
def test_a_bundle_without_a_usable_config_is_refused(tmp_path: Path, config: Any) -> None:
    _, bundle = exported(tmp_path, config=config)
    with pytest.raises(InputError, match="config"):
        rebuild(open_bundle(bundle))


SELECTIONS: dict[str, dict[str, Any]] = {
    "optfs": {"method": "optfs", "strength": 0.1, "search_epochs": 2},
    "magnitude": {"method": "magnitude", "keep": 0.5},
}


def packed(folder: Path, method: str, **manifest: Any) -> tuple[World, Path]:
    """A bundle whose tables lost about half of their rows."""
    plain = world(folder, model={"name": "autoint", "hidden_units": [], "wide": True})
    tree = plain.config.model_dump(mode="json") | {"selection": SELECTIONS[method]}
    config = parse_config(tree)
    assembly = build(config, plain.features)
    shake(assembly.model)
    assert assembly.selection is not None
    generator = torch.Generator().manual_seed(2)
    assembly.selection.close(
        [torch.rand(len(mask), generator=generator) < 0.5 for mask in assembly.selection.kept()]
    )
    report = assembly.selection.report()
    assert 0 < report["rows_kept"] < report["rows"]
    parts = assembly.finalise()
    export(
        parts.model,
        parts.encoder,
        parts.id_map,
        plain.features.inputs,
        folder / "bundle",
        manifest={"config": config.model_dump(mode="json"), "selection": report, **manifest},
        features=plain.features,
    )
    return plain, folder / "bundle"


@pytest.mark.parametrize("method", SELECTIONS)
def test_packed_tables_are_rebuilt(tmp_path: Path, method: str) -> None:
    tried, bundle = packed(tmp_path, method)
    opened = open_bundle(bundle)
    scores = Scorer(opened).predict(tried.table)
    assert rebuild(opened).check(tried.raw(), scores) <= 1e-6
    assert scores.std() > 0.01


@pytest.mark.parametrize("said", [None, {"rows": 3}, {"kept_by_table": [1, 2, 3]}])
def test_packed_tables_without_a_word_on_what_was_kept_are_refused(
    tmp_path: Path, said: Any
) -> None:
    _, bundle = packed(tmp_path, "optfs", selection=said)
    with pytest.raises(CannotRebuild, match="does not say what its selection kept"):
        rebuild(open_bundle(bundle))
