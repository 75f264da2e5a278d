"""A bundle exported anew from its own weights: for the day another graph format is wanted."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.train import first_rows
from recsys.bundle import export_verified
from recsys.bundle.rebuild import rebuild
from recsys.data import splits
from serving.bundle import open_bundle

_RECORDED = ("name", "run_id", "config", "metrics", "memory", "selection")


def run(bundle: Path, out: Path, *, root: str = ".") -> dict[str, Any]:
    """Rebuilds the modules from manifest, features and weights, exports and verifies them.

    ``root``: where the run's data is; verification scores raw rows of it.
    """
    opened = open_bundle(bundle)
    rebuilt = rebuild(opened)
    config, features, graph = rebuilt.config, rebuilt.features, rebuilt.graph
    raw = splits(config.data, root)
    report = export_verified(
        graph.model,
        graph.encoder,
        graph.id_map,
        features.inputs,
        out,
        manifest={key: opened.manifest[key] for key in _RECORDED if key in opened.manifest},
        features=features,
        rows=first_rows(raw.valid or raw.train, features.inputs, config.export.verify_rows),
        tolerance=config.export.tolerance,
    )
    return {"bundle": str(out), "verified": asdict(report)}
