"""A bundle exported anew from its own weights: for the day another graph format is wanted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_model

from pipelines.train import first_rows
from recsys.build import build
from recsys.bundle import ServingGraph, export_verified
from recsys.config import parse_config
from recsys.data import splits
from recsys.features import Features
from serving.bundle import FEATURES, WEIGHTS, read_manifest

_RECORDED = ("name", "run_id", "config", "metrics", "memory", "selection")


def run(bundle: Path, out: Path, *, root: str = ".") -> dict[str, Any]:
    """Rebuilds the modules from manifest, features and weights, exports and verifies them.

    ``root``: where the run's data is; verification scores raw rows of it.
    """
    manifest = read_manifest(bundle)
    config = parse_config(manifest["config"], where=f"config in {bundle}")
    features = Features.load(bundle / FEATURES)
    assembly = build(config, features)
    if assembly.selection is not None:
        assembly.selection.assume(manifest["selection"])
    assembly = assembly.finalise()
    graph = ServingGraph(encoder=assembly.encoder, id_map=assembly.id_map, model=assembly.model)
    load_model(graph, bundle / WEIGHTS)
    raw = splits(config.data, root)
    report = export_verified(
        assembly.model,
        assembly.encoder,
        assembly.id_map,
        features.inputs,
        out,
        manifest={key: manifest[key] for key in _RECORDED if key in manifest},
        features=features,
        rows=first_rows(raw.valid or raw.train, features.inputs, config.export.verify_rows),
        tolerance=config.export.tolerance,
    )
    return {"bundle": str(out), "verified": asdict(report)}
