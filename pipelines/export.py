"""A bundle exported anew from its own weights: in another graph format, or in fewer bytes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from pipelines import evaluate, evaluate_ranking
from pipelines.prepare import read_text
from pipelines.sample import first_rows
from recsys.build import table_memory
from recsys.bundle import VerifyReport, export_verified
from recsys.bundle.new_catalogue import check_catalogue, over_catalogue
from recsys.bundle.rebuild import rebuild
from recsys.bundle.rebuild_topk import RebuiltTopK, rebuild_top_k
from recsys.bundle.topk import export_top_k
from recsys.bundle.verify import expected_scores
from recsys.data import splits
from recsys.data.item_space import as_typed, raw_items
from recsys.embeddings.post_training import Kind, quantise_layers
from recsys.training.progress import Reporter, SilentReporter
from recsys.types import InputError, Metrics
from serving.bundle import ITEMS, Bundle, open_bundle
from serving.topk import TopK

_RECORDED = ("name", "run_id", "config", "metrics", "memory", "selection", "quantised", "log")

Manifest = dict[str, Any]
Judge = Callable[[str], Metrics]


@dataclass(frozen=True)
class _Job:
    """What both kinds of bundle are exported from; ``manifest`` is changed by quantising."""

    opened: Bundle
    out: Path
    manifest: Manifest
    root: str
    quantise: Kind | None
    catalogue: str | None
    reporter: Reporter


def run(
    bundle: Path,
    out: Path,
    *,
    root: str = ".",
    quantise: Kind | None = None,
    catalogue: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Rebuilds the modules from manifest, features and weights, exports and verifies them.

    ``root``: where the run's data is; verification scores raw rows of it. ``quantise``: tables of
    floats become such rows, valid and test are measured again, and the manifest says what it cost.
    ``catalogue``: items to recommend from now on, of a model that reads their text; the columns are
    those of the run's own, and metrics, measured with that one, are left out of the manifest.
    Returns ``{bundle, verified}`` and, with ``quantise``, ``{quantised: {kind, stored_bytes:
    {before, after}, METRIC: {split: {before, after}}}}``. Errors: `InputError` for a bundle that is
    quantised already, and for a catalogue where the bundle's model reads no text.
    """
    opened = open_bundle(bundle)
    if out.exists() and not out.samefile(bundle):
        raise InputError(f"{out} exists; give a folder of another name, or remove it")
    manifest = {key: opened.manifest[key] for key in _RECORDED if key in opened.manifest}
    if quantise is not None and "quantised" in manifest:
        raise InputError(
            f"--quantise {quantise}: the tables of {bundle} are {manifest['quantised']['kind']} "
            "already; start from the bundle of floats"
        )
    again = _top_k if opened.task == TopK.task else _clicks
    job = _Job(opened, out, manifest, root, quantise, catalogue, reporter or SilentReporter())
    report = again(job)
    said = {"quantised": manifest["quantised"]} if quantise is not None else {}
    return {"bundle": str(out), "verified": asdict(report), **said}


def _clicks(job: _Job) -> VerifyReport:
    if job.catalogue is not None:
        raise InputError(f"--items: {job.opened.path} scores clicks and has no items; leave it out")
    rebuilt = rebuild(job.opened)
    config, features, graph = rebuilt.config, rebuilt.features, rebuilt.graph

    def judge(split: str) -> Metrics:
        source = evaluate.split_of(job.opened, config.data, split, job.root)
        columns = list(dict.fromkeys(field.column for field in features.inputs))
        found, _ = evaluate.judged(
            source,
            config.data,
            columns,
            lambda rows: expected_scores(graph, features.inputs, pa.Table.from_batches([rows])),
            (),
            job.reporter,
        )
        return found.metrics()

    if job.quantise is not None:
        _quantise(graph.model, job.quantise, job.manifest, "auc", judge)
    raw = splits(config.data, job.root)
    return export_verified(
        graph.model,
        graph.encoder,
        graph.id_map,
        features.inputs,
        job.out,
        manifest=job.manifest,
        features=features,
        rows=first_rows(raw.valid or raw.train, features.inputs, config.export.verify_rows),
        tolerance=config.export.tolerance,
    )


def _top_k(job: _Job) -> VerifyReport:
    rebuilt = rebuild_top_k(job.opened)
    items = pq.read_table(job.opened.path / ITEMS)["item"].combine_chunks()
    if job.catalogue is not None:
        rebuilt, items = _over(rebuilt, items, job)
    config, features, graph = rebuilt.config, rebuilt.features, rebuilt.graph
    with tempfile.TemporaryDirectory(prefix="recsys-export-") as name:
        folder = Path(name)

        def judge(split: str) -> Metrics:
            source = evaluate_ranking.split_of(rebuilt, split, job.root, folder, job.reporter)
            return evaluate_ranking.judged(rebuilt, source, folder, job.reporter)

        if job.quantise is not None:
            _quantise(
                graph.model, job.quantise, job.manifest, f"ndcg@{config.ranking.shown}", judge
            )
        valid = evaluate_ranking.split_of(rebuilt, "valid", job.root, folder, job.reporter)
        rows = first_rows(valid, features.inputs, config.export.verify_rows)
    return export_top_k(
        graph.model,
        graph.encoder,
        features.inputs,
        job.out,
        items=items,
        k=graph.k,
        filter_seen=graph.filter_seen,
        manifest=job.manifest,
        features=features,
        rows=rows,
        tolerance=config.export.tolerance,
    )


def _over(rebuilt: RebuiltTopK, items: pa.Array, job: _Job) -> tuple[RebuiltTopK, pa.Array]:
    """The bundle's model over the items of ``job.catalogue`` instead of ``items``; the manifest
    says so."""
    assert job.catalogue is not None
    if job.quantise is not None or "quantised" in job.manifest:
        raise InputError(
            "--items: give the catalogue to the bundle of floats, then quantise what comes out"
        )
    check_catalogue(rebuilt)
    assert rebuilt.config.data.items is not None
    config = rebuilt.config.data.items.model_copy(update={"source": job.catalogue})
    features, found = read_text(rebuilt.features, config, job.root, job.reporter, keep_words=True)
    again = over_catalogue(rebuilt, features)
    trained = job.manifest["memory"]["training_bytes"]
    sizes = replace(table_memory(again.graph.model), training_bytes=trained)
    job.manifest["memory"] = asdict(sizes)
    job.manifest["config"]["data"]["items"]["source"] = job.catalogue
    job.manifest.pop("metrics", None)
    return again, raw_items(as_typed(found, items.type), features)


def _quantise(model: nn.Module, kind: Kind, manifest: Manifest, metric: str, judge: Judge) -> None:
    """Puts tables of ``kind`` into the model and into ``manifest`` what that changed."""
    before = table_memory(model)
    if not quantise_layers(model, kind):
        raise InputError(
            f"--quantise {kind}: no table of the bundle is rows of plain floats, which alone can "
            "be quantised; leave it as it is"
        )
    after = table_memory(model)
    changed = {}
    for split, live in manifest.get("metrics", {}).items():
        served = judge(split)
        changed[split] = {"before": live[metric], "after": served[metric]}
    sizes = {"before": before.stored_bytes, "after": after.stored_bytes}
    trained = manifest["memory"]["training_bytes"]
    manifest["memory"] = asdict(replace(after, training_bytes=trained))
    measured = {metric: changed} if changed else {}
    manifest["quantised"] = {"kind": kind, "stored_bytes": sizes, **measured}
    export = {**manifest["config"].get("export", {}), "quantise": kind}
    manifest["config"] = {**manifest["config"], "export": export}


def render(result: dict[str, Any]) -> str:
    """What was written, and what fewer bytes cost."""
    lines = [f"verified: {result['bundle']}"]
    for key, value in result.get("quantised", {}).items():
        if key == "stored_bytes":
            lines.append(f"tables: {value['before']:,} -> {value['after']:,} bytes")
        elif key != "kind":
            for split, change in value.items():
                lines.append(f"{split} {key}: {change['before']:.5f} -> {change['after']:.5f}")
    return "\n".join(lines)
