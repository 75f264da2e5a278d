"""A bundle: a folder with all that turns raw rows into scores. Opened only after every byte of it
has been checked.

    manifest.json         format version, sha256 and size of every file, inputs, id rule, config,
                          metrics, sizes, versions, output, time of creation
    model.ts              TorchScript: forward(ids, floats, lists, lengths) -> scores (B,)
    weights.safetensors   the same weights, and
    features/             the fitted features, to build and export the model again

A bundle of the task ``top_k`` recommends items to histories: its graph returns item ids and scores
(see `serving.topk`), and it also holds

    items.parquet         the raw item of each id, in a column ``item``
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Tuple, get_args, get_type_hints

import torch

from serving.encode import InputField
from serving.errors import InputError
from serving.ids import ID_RULE

__all__ = [
    "FEATURES",
    "FORMAT_VERSION",
    "GRAPH",
    "ITEMS",
    "MANIFEST",
    "WEIGHTS",
    "Bundle",
    "BundleDamaged",
    "BundleError",
    "BundleMissing",
    "BundleVersion",
    "file_digest",
    "open_bundle",
    "read_manifest",
]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GRAPH = "model.ts"
WEIGHTS = "weights.safetensors"
FEATURES = "features"
ITEMS = "items.parquet"

TASKS = ("score", "top_k")

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 1_000
MAX_MEMBERS = 100_000
# TorchScript stores tensors uncompressed; only small debug records are deflated.
MAX_RATIO = 2
MAX_SLACK_BYTES = 64 * 2**20


class BundleError(InputError):
    """A folder that cannot be used as a bundle."""


class BundleMissing(BundleError):
    """The folder, its manifest or a file that the manifest lists is not there."""


class BundleDamaged(BundleError):
    """Bytes differ from what was exported, or the content is not what a bundle may hold."""


class BundleVersion(BundleError):
    """Written by a newer version of this package."""


_FILE_ACCESS = re.compile(rb"\b(from_file|torch\.save|aten\.save)\b")
"""The operators of TorchScript that read or write files."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. ``graph`` is in evaluation mode on the CPU; its signature is
    ``forward(ids, floats, lists, lengths) -> scores (B,)`` float32 probabilities, its arguments
    are the fields of `serving.encode.Batch`. ``task``: one of `TASKS`; `top_k` graphs return item
    ids and scores."""

    path: Path
    manifest: Dict[str, Any]
    inputs: Tuple[InputField, ...]
    graph: torch.jit.ScriptModule

    @property
    def task(self) -> str:
        """What the bundle answers; bundles that do not say score rows."""
        return str(self.manifest.get("task", TASKS[0]))


def open_bundle(path: str | Path) -> Bundle:
    """Check every file of the bundle at ``path`` against its manifest, then load the graph.

    Raises `BundleMissing`, `BundleVersion` or `BundleDamaged` (all `InputError`), always before
    anything of the graph is read.
    """
    manifest = read_manifest(path)
    root = Path(path)
    _check_archive(root / GRAPH)
    _check_program(root / GRAPH)
    return Bundle(root, manifest, _inputs(root, manifest), load_graph(root / GRAPH))


def read_manifest(path: str | Path) -> Dict[str, Any]:
    """The manifest of the bundle at ``path``, after size and sha256 of every file were checked."""
    root = Path(path)
    if not root.is_dir():
        raise BundleMissing(f"{path}: no such bundle folder; give the folder that export wrote")
    manifest = _parse(root / MANIFEST)
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleDamaged(f"{root / MANIFEST}: format_version is {version!r}; export again")
    rule = manifest.get("id_rule")
    if version > FORMAT_VERSION or (isinstance(rule, int) and rule > ID_RULE):
        raise BundleVersion(
            f"{path}: bundle format {version}, id rule {rule}; this version reads format "
            f"{FORMAT_VERSION}, id rule {ID_RULE}: install a newer version, or export again"
        )
    if rule != ID_RULE:
        raise BundleDamaged(f"{root / MANIFEST}: id_rule is {rule!r}; export again")
    files = manifest.get("files")
    if not isinstance(files, dict) or len(files) > MAX_FILES:
        raise BundleDamaged(f"{root / MANIFEST}: no usable list of files; export again")
    task = manifest.get("task", TASKS[0])
    if task not in TASKS:
        raise BundleVersion(f"{path}: task {task!r} is not known here; install a newer version")
    for name in (GRAPH, WEIGHTS, *((ITEMS,) if task == "top_k" else ())):
        if name not in files:
            raise BundleDamaged(f"{root / MANIFEST}: {name} is not listed; export again")
    for name, entry in files.items():
        _check_file(root, name, entry)
    return manifest


def file_digest(path: Path) -> str:
    """Hex sha256 of a file, read in a stream."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(path: Path) -> Dict[str, Any]:
    if not path.is_file():
        inside = path.parent / "bundle" / path.name  # of the folder of a run
        hint = f": {inside.parent}" if inside.is_file() else ""
        raise BundleMissing(f"{path}: missing; give the folder that export wrote{hint}")
    with path.open("rb") as file:
        raw = file.read(MAX_MANIFEST_BYTES + 1)
    if len(raw) > MAX_MANIFEST_BYTES:
        raise BundleDamaged(f"{path}: above {MAX_MANIFEST_BYTES} bytes, not a manifest")
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleDamaged(f"{path}: not readable JSON ({error}); export again") from None
    if not isinstance(manifest, dict):
        raise BundleDamaged(f"{path}: not a JSON object; export again")
    return manifest


def _check_file(root: Path, name: str, entry: Any) -> None:
    path = root / name
    parts = Path(name).parts
    inside = bool(parts) and ".." not in parts and "\0" not in name and not Path(name).is_absolute()
    if not inside or not path.resolve().is_relative_to(root.resolve()):
        raise BundleDamaged(f"{root / MANIFEST}: file {name!r} lies outside the bundle; refused")
    if not path.is_file():
        raise BundleMissing(f"{path}: listed in the manifest but missing; copy or export it again")
    if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
        raise BundleDamaged(f"{root / MANIFEST}: {name} has no size and sha256; export again")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise BundleDamaged(
            f"{path}: {size} bytes, but {entry['bytes']} were exported; copy or export it again"
        )
    if file_digest(path) != entry["sha256"]:
        raise BundleDamaged(
            f"{path}: sha256 differs from the manifest, the file was changed; copy or export it "
            "again"
        )


def _check_archive(path: Path) -> None:
    """A TorchScript file is a zip: refuse one that unpacks to far more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BundleDamaged(f"{path}: not a TorchScript archive ({error}); export again") from None
    unpacked = sum(member.file_size for member in members)
    allowed = MAX_RATIO * path.stat().st_size + MAX_SLACK_BYTES
    if len(members) > MAX_MEMBERS or unpacked > allowed:
        raise BundleDamaged(
            f"{path}: unpacks to {len(members)} members of {unpacked} bytes, above the caps of "
            f"{MAX_MEMBERS} and {allowed}; refused"
        )


def _check_program(path: Path) -> None:
    """Refuse TorchScript that reads or writes files, before any of it runs."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            found = _FILE_ACCESS.search(archive.read(name)) if name.endswith(".py") else None
            if found is not None:
                raise BundleDamaged(
                    f"{path}: its program calls {found.group().decode()}, which reaches files of "
                    "this machine and which no export writes; refused"
                )


def _inputs(root: Path, manifest: Dict[str, Any]) -> Tuple[InputField, ...]:
    types = get_type_hints(InputField)
    kinds, families = get_args(types["kind"]), get_args(types["dtype"])
    entries = manifest.get("inputs")
    if not isinstance(entries, list):
        raise BundleDamaged(f"{root / MANIFEST}: no list of inputs; export again")
    fields = []
    for entry in entries:
        try:
            field = InputField(**entry)
        except TypeError as error:
            raise BundleDamaged(f"{root / MANIFEST}: input {entry!r}: {error}") from None
        longest = field.max_length
        if (
            not isinstance(field.name, str)
            or not isinstance(field.column, str)
            or field.kind not in kinds
            or field.dtype not in families
            or not (longest is None or (isinstance(longest, int) and longest > 0))
        ):
            raise BundleDamaged(f"{root / MANIFEST}: input {entry!r} is not valid; export again")
        fields.append(field)
    return tuple(fields)


def load_graph(path: Path) -> torch.jit.ScriptModule:
    """Load TorchScript on the CPU. The only call of `torch.jit.load`."""
    with warnings.catch_warnings():
        # Deprecated upstream, still what loads with torch alone everywhere.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit.*")
        try:
            graph = torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise BundleDamaged(
                f"{path}: torch {torch.__version__} cannot load it ({reason})"
            ) from (error)
    return graph.eval()
