"""Write a bundle: script, save, hash, fsync, prove, rename."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import save_model
from torch import nn

from recsys.bundle.graph import ServingGraph
from recsys.bundle.stress import stress_rows
from recsys.bundle.verify import VerifyReport, expected_scores, verify
from recsys.features import Features
from serving.bundle import FEATURES, FORMAT_VERSION, GRAPH, MANIFEST, WEIGHTS, file_digest
from serving.encode import InputField
from serving.errors import InputError
from serving.ids import ID_RULE

__all__ = ["export", "export_verified", "script"]

_OWN_KEYS = frozenset(
    {"format_version", "created", "id_rule", "inputs", "output", "versions", "files", "verified"}
)
_OUTPUT = {"name": "score", "dtype": "float32", "shape": ["B"], "meaning": "probability of label 1"}
_PACKAGES = ("recsys", "torch", "numpy", "pyarrow", "polars", "polars-hash", "safetensors")


def export(
    model: nn.Module,
    encoder: nn.Module,
    id_map: nn.Module,
    inputs: Sequence[InputField],
    out: str | Path,
    *,
    manifest: Mapping[str, Any],
    features: Features | None = None,
) -> Path:
    """Write the bundle of a finalised model to the folder ``out`` and return its path.

    The folder appears complete or not at all; an older bundle there is replaced, anything else
    there is an `InputError`. ``manifest``: what else to record (config, metrics, sizes, ...), as
    plain JSON values; NaN and infinity become null. Modules must be on the CPU; their training
    flags are as before afterwards. ``features``: kept beside the weights, so that the modules can
    be built and exported again. Nothing is proved here: use `export_verified`.
    """
    with _staged(Path(out)) as folder, _serving(model, encoder, id_map) as graph:
        _write(graph, inputs, folder, manifest, features)
    return Path(out)


def export_verified(
    model: nn.Module,
    encoder: nn.Module,
    id_map: nn.Module,
    inputs: Sequence[InputField],
    out: str | Path,
    *,
    manifest: Mapping[str, Any],
    features: Features | None = None,
    rows: pa.Table,
    tolerance: float = 1e-6,
) -> VerifyReport:
    """`export`, but the folder only appears at ``out`` after it was proved.

    ``rows``: raw validation rows. They, the same rows with nulls and with unseen ids put in, and
    an empty batch are scored by the eager modules here and by the bundle in a fresh process
    without recsys; a difference above ``tolerance`` raises `VerifyError`. The manifest records the
    result under ``verified``.
    """
    tested = stress_rows(rows, inputs)
    with _staged(Path(out)) as folder, _serving(model, encoder, id_map) as graph:
        content = _write(graph, inputs, folder, manifest, features)
        expected = expected_scores(graph, inputs, tested)
        report = verify(folder, tested, expected, tolerance=tolerance)
        verified = {"rows": report.rows, "max_abs_diff": report.max_abs_diff}
        _write_json(
            folder / MANIFEST, {**content, "verified": {**verified, "tolerance": tolerance}}
        )
    return report


def script(graph: ServingGraph) -> torch.jit.ScriptModule:
    """TorchScript of a serving graph in evaluation mode."""
    with warnings.catch_warnings():
        # Deprecated upstream, still what loads with torch alone, and what Triton takes.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.*")
        return torch.jit.script(graph)


@contextmanager
def _serving(model: nn.Module, encoder: nn.Module, id_map: nn.Module) -> Iterator[ServingGraph]:
    """The three parts as one graph in evaluation mode; their training flags are restored."""
    modules = [m for part in (model, encoder, id_map) for m in part.modules()]
    flags = [module.training for module in modules]
    graph = ServingGraph(encoder=encoder, id_map=id_map, model=model).eval()
    tensors = [*graph.parameters(), *graph.buffers()]
    assert all(t.device.type == "cpu" for t in tensors), "move the model to the CPU to export it"
    try:
        yield graph
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


def _write(
    graph: ServingGraph,
    inputs: Sequence[InputField],
    folder: Path,
    extra: Mapping[str, Any],
    features: Features | None,
) -> dict[str, Any]:
    assert not _OWN_KEYS & extra.keys(), f"the exporter writes {_OWN_KEYS & extra.keys()} itself"
    script(graph).save(str(folder / GRAPH))
    save_model(graph, str(folder / WEIGHTS))
    if features is not None:
        features.save(folder / FEATURES)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    content = {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "id_rule": ID_RULE,
        "inputs": [asdict(field) for field in inputs],
        "output": _OUTPUT,
        "versions": _versions(),
        "files": files,
        **_plain(extra),
    }
    _write_json(folder / MANIFEST, content)
    return content


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    found = {name: installed[name] for name in _PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A hidden sibling folder that becomes ``out`` if the block succeeds, else is removed."""
    if out.exists() and not all((out / name).is_file() for name in (MANIFEST, GRAPH)):
        raise InputError(f"{out} exists and is not a bundle; give another folder or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    try:
        yield folder
        _sync(folder)
        _publish(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _publish(folder: Path, out: Path) -> None:
    old = folder.with_suffix(".old")
    replaces = out.exists()
    if replaces:  # a folder cannot be renamed over another: the older one steps aside
        os.rename(out, old)
    try:
        os.rename(folder, out)
    except BaseException:
        if replaces:
            os.rename(old, out)
        raise
    _sync(out.parent)
    if replaces:
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
