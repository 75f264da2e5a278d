"""The folder of a bundle of any kind: script, save, hash, fsync, rename."""

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

import torch
from safetensors.torch import save_model
from torch import nn

from recsys.disk import disk_errors, readable
from recsys.features import Features
from serving.bundle import FEATURES, FORMAT_VERSION, GRAPH, MANIFEST, WEIGHTS, file_digest
from serving.encode import InputField
from serving.errors import InputError
from serving.ids import ID_RULE

__all__ = ["in_service", "plain", "record_proof", "script", "staged", "write"]

_OWN_KEYS = frozenset(
    {"format_version", "created", "id_rule", "inputs", "output", "versions", "files", "verified"}
)
_PACKAGES = ("recsys", "torch", "numpy", "pyarrow", "polars", "polars-hash", "safetensors")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
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


@contextmanager
def in_service(graph: nn.Module) -> Iterator[None]:
    """``graph`` in evaluation mode for the block; the training flags of its parts are restored.
    Its tensors must be on the CPU."""
    modules = list(graph.modules())
    flags = [module.training for module in modules]
    tensors = [*graph.parameters(), *graph.buffers()]
    assert all(t.device.type == "cpu" for t in tensors), "move the model to the CPU to export it"
    graph.eval()
    try:
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


def write(
    graph: nn.Module,
    inputs: Sequence[InputField],
    folder: Path,
    *,
    output: Any,
    extra: Mapping[str, Any],
    features: Features | None,
) -> dict[str, Any]:
    """Fill ``folder``: graph, weights, features, and last the manifest, which is returned. Files
    that are already there belong to the bundle. ``output``: what the graph returns; ``extra``:
    what else the manifest records."""
    assert not _OWN_KEYS & extra.keys(), f"the exporter writes {_OWN_KEYS & extra.keys()} itself"
    # By way of memory: torch ends the whole process where it cannot write to the disk.
    (folder / GRAPH).write_bytes(script(graph).save_to_buffer())
    with disk_errors(folder / WEIGHTS):
        save_model(graph, str(folder / WEIGHTS))
    readable(folder / WEIGHTS)
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
        "output": output,
        "versions": _versions(),
        "files": files,
        **plain(extra),
    }
    _write_json(folder / MANIFEST, content)
    return content


def record_proof(folder: Path, content: Mapping[str, Any], verified: Mapping[str, Any]) -> None:
    """Write the manifest of ``folder`` again, with what was ``verified``."""
    _write_json(folder / MANIFEST, {**content, "verified": dict(verified)})


def script(graph: nn.Module) -> torch.jit.ScriptModule:
    """TorchScript of a serving graph in evaluation mode."""
    with warnings.catch_warnings():
        # Deprecated upstream, still what loads with torch alone, and what Triton takes.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.*")
        return torch.jit.script(graph)


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    found = {name: installed[name] for name in _PACKAGES if name in installed}
    return {"python": platform.python_version(), **found}


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)


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
