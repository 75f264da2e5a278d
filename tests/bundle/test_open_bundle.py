"""A bundle is opened only if every byte is what was exported."""

import json
import os
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from doubles import INPUTS, parts

import serving.bundle as module
from recsys.bundle import export
from serving.bundle import (
    BundleDamaged,
    BundleError,
    BundleMissing,
    BundleVersion,
    file_digest,
    open_bundle,
)
from serving.errors import InputError


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(*parts(), INPUTS, tmp_path_factory.mktemp("bundle") / "b", manifest={})


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "b"))


@pytest.fixture
def no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals must come before the graph is read."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the graph was loaded")

    monkeypatch.setattr(torch.jit, "load", refuse)


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def relist(bundle: Path, name: str) -> None:
    """List a changed file as an attacker would: with its right size and sha256."""
    entry = {"bytes": (bundle / name).stat().st_size, "sha256": file_digest(bundle / name)}
    edit(bundle, lambda m: m["files"].update({name: entry}))


def test_opens_without_a_warning(bundle: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_bundle(bundle)
    assert opened.path == bundle
    assert opened.inputs == INPUTS
    assert not opened.graph.training
    # other DeprecationWarnings stay visible
    with pytest.warns(DeprecationWarning, match="mine"):
        warnings.warn("mine", DeprecationWarning, stacklevel=1)


@pytest.mark.parametrize("name", ["model.ts", "weights.safetensors"])
@pytest.mark.usefixtures("no_load")
def test_a_flipped_byte(bundle: Path, name: str) -> None:
    raw = bytearray((bundle / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (bundle / name).write_bytes(raw)
    with pytest.raises(BundleDamaged, match=rf"{name}: sha256 differs from the manifest"):
        open_bundle(bundle)


@pytest.mark.usefixtures("no_load")
def test_a_cut_file(bundle: Path) -> None:
    raw = (bundle / "model.ts").read_bytes()
    (bundle / "model.ts").write_bytes(raw[:-1])
    with pytest.raises(
        BundleDamaged, match=rf"model.ts: {len(raw) - 1} bytes, but {len(raw)} were"
    ):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["model.ts", "weights.safetensors", "manifest.json"])
@pytest.mark.usefixtures("no_load")
def test_a_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleMissing, match=rf"{name}: .*missing"):
        open_bundle(bundle)


@pytest.mark.usefixtures("no_load")
def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="no such bundle folder"):
        open_bundle(tmp_path / "nothing")


@pytest.mark.parametrize("key", ["format_version", "id_rule"])
@pytest.mark.usefixtures("no_load")
def test_a_future_version(bundle: Path, key: str) -> None:
    edit(bundle, lambda m: m.update({key: 2}))
    with pytest.raises(BundleVersion, match="install a newer version, or export again"):
        open_bundle(bundle)


@pytest.mark.usefixtures("no_load")
def test_a_future_version_is_told_before_anything_else_is_asked(bundle: Path) -> None:
    (bundle / "manifest.json").write_text('{"format_version": 7, "id_rule": 1}')
    with pytest.raises(BundleVersion, match="bundle format 7"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"format_version": "1"}',
        '{"format_version": true}',
        '{"format_version": 1, "id_rule": 1}',
        '{"format_version": 1, "id_rule": 1, "files": []}',
    ],
    ids=range(9),
)
@pytest.mark.usefixtures("no_load")
def test_a_manifest_that_is_none(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleDamaged, match=r"manifest.json: .*export again") as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_load")
def test_a_huge_manifest(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(BundleDamaged, match="above 100 bytes"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"].pop("model.ts"),
        lambda m: m["files"].update({"model.ts": None}),
        lambda m: m["files"].update({"model.ts": {"bytes": 3}}),
        lambda m: m.pop("inputs"),
        lambda m: m["inputs"].append({"name": "x"}),
        lambda m: m["inputs"].append(7),
        lambda m: m["inputs"][0].update(kind="eval"),
        lambda m: m["inputs"][0].update(dtype=["int"]),
        lambda m: m["inputs"][0].update(max_length=-1),
        lambda m: m["inputs"][0].update(column=3),
    ],
    ids=range(10),
)
@pytest.mark.usefixtures("no_load")
def test_a_manifest_with_a_wrong_part(bundle: Path, change: Callable[[Any], object]) -> None:
    edit(bundle, change)
    with pytest.raises(BundleDamaged, match=r"manifest\.json: "):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["../secret", "sub/../../secret", "ABSOLUTE", "", "link", "a\0b"])
@pytest.mark.usefixtures("no_load")
def test_a_path_out_of_the_folder(bundle: Path, name: str) -> None:
    secret = bundle.parent / "secret"
    secret.write_text("s")
    (bundle / "link").symlink_to(secret)
    listed = str(secret) if name == "ABSOLUTE" else name
    entry = {"bytes": 1, "sha256": file_digest(secret)}
    edit(bundle, lambda m: m["files"].update({listed: entry}))
    with pytest.raises(BundleDamaged, match="lies outside the bundle; refused"):
        open_bundle(bundle)


@pytest.mark.usefixtures("no_load")
def test_a_zip_bomb(bundle: Path) -> None:
    with zipfile.ZipFile(bundle / "model.ts", "w", zipfile.ZIP_DEFLATED) as archive:
        for part in range(2):
            archive.writestr(f"model/data/{part}", bytes(40 * 2**20))
    assert (bundle / "model.ts").stat().st_size < 2**20
    relist(bundle, "model.ts")
    with pytest.raises(
        BundleDamaged, match="unpacks to 2 members of 83886080 bytes, above the caps"
    ):
        open_bundle(bundle)


@pytest.mark.usefixtures("no_load")
def test_too_many_members(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    with pytest.raises(BundleDamaged, match="above the caps of 3"):
        open_bundle(bundle)


def test_a_graph_that_is_no_torchscript(bundle: Path) -> None:
    (bundle / "model.ts").write_bytes(b"not a zip")
    relist(bundle, "model.ts")
    with pytest.raises(BundleDamaged, match="not a TorchScript archive"):
        open_bundle(bundle)
    with zipfile.ZipFile(bundle / "model.ts", "w") as archive:
        archive.writestr("model/data.pkl", struct.pack("<I", 0))
    relist(bundle, "model.ts")
    with pytest.raises(BundleDamaged, match="cannot load it"):
        open_bundle(bundle)


class Overwrites(torch.nn.Module):
    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file(self.file, True, 4, dtype=torch.uint8).fill_(66)


def test_a_program_that_reaches_for_files_is_refused(bundle: Path, tmp_path: Path) -> None:
    torch.jit.script(Overwrites(str(tmp_path / "victim"))).save(str(bundle / "model.ts"))
    relist(bundle, "model.ts")
    with pytest.raises(BundleDamaged, match="its program calls from_file, which reaches files"):
        open_bundle(bundle)


def test_all_are_input_errors_and_other_files_are_let_be(bundle: Path) -> None:
    assert issubclass(BundleError, InputError)
    (bundle / "README.md").write_text("mine")
    os.chmod(bundle / "model.ts", 0o444)
    assert open_bundle(bundle).inputs == INPUTS
