"""A bundle exported anew from its own weights: for the day another graph format is wanted."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.evaluate_ranking import split_of
from pipelines.sample import first_rows
from recsys.bundle import VerifyReport, export_verified
from recsys.bundle.rebuild import rebuild
from recsys.bundle.rebuild_topk import rebuild_top_k
from recsys.bundle.topk import export_top_k
from recsys.data import splits
from recsys.training.progress import SilentReporter
from serving.bundle import ITEMS, Bundle, open_bundle
from serving.topk import TopK

_RECORDED = ("name", "run_id", "config", "metrics", "memory", "selection", "quantised")


def run(bundle: Path, out: Path, *, root: str = ".") -> dict[str, Any]:
    """Rebuilds the modules from manifest, features and weights, exports and verifies them.

    ``root``: where the run's data is; verification scores raw rows of it.
    """
    opened = open_bundle(bundle)
    manifest = {key: opened.manifest[key] for key in _RECORDED if key in opened.manifest}
    again = _top_k if opened.task == TopK.task else _clicks
    report = again(opened, out, manifest, root)
    return {"bundle": str(out), "verified": asdict(report)}


def _clicks(opened: Bundle, out: Path, manifest: dict[str, Any], root: str) -> VerifyReport:
    rebuilt = rebuild(opened)
    config, features, graph = rebuilt.config, rebuilt.features, rebuilt.graph
    raw = splits(config.data, root)
    return export_verified(
        graph.model,
        graph.encoder,
        graph.id_map,
        features.inputs,
        out,
        manifest=manifest,
        features=features,
        rows=first_rows(raw.valid or raw.train, features.inputs, config.export.verify_rows),
        tolerance=config.export.tolerance,
    )


def _top_k(opened: Bundle, out: Path, manifest: dict[str, Any], root: str) -> VerifyReport:
    rebuilt = rebuild_top_k(opened)
    config, features, graph = rebuilt.config, rebuilt.features, rebuilt.graph
    with tempfile.TemporaryDirectory(prefix="recsys-export-") as folder:
        valid = split_of(rebuilt, "valid", root, Path(folder), SilentReporter())
        rows = first_rows(valid, features.inputs, config.export.verify_rows)
    return export_top_k(
        graph.model,
        graph.encoder,
        features.inputs,
        out,
        items=pq.read_table(opened.path / ITEMS)["item"].combine_chunks(),
        k=graph.k,
        filter_seen=graph.filter_seen,
        manifest=manifest,
        features=features,
        rows=rows,
        tolerance=config.export.tolerance,
    )
