"""What export writes, and that it is written whole or not at all."""

import datetime as dt
import importlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from doubles import INPUTS, Model, parts, table
from safetensors.torch import load_model
from torch.export import Dim

from recsys.bundle import ServingGraph, VerifyError, export, export_verified, verify
from recsys.bundle.stress import stress_rows
from recsys.bundle.verify import expected_scores
from serving.bundle import file_digest, open_bundle
from serving.encode import NULL_ID, InputField, encode
from serving.errors import InputError
from serving.scorer import Scorer


def graph() -> ServingGraph:
    model, encoder, id_map = parts()
    return ServingGraph(encoder=encoder, id_map=id_map, model=model).eval()


def test_the_bundle_scores_as_the_modules_do(tmp_path: Path) -> None:
    path = export(*parts(), INPUTS, tmp_path / "b", manifest={})
    got = Scorer(path).predict(table(40))
    with torch.inference_mode():
        expected = graph()(*encode(table(40), INPUTS)).numpy()
    assert got.dtype == np.float32
    assert np.array_equal(got, expected)
    assert 0 < got.min() < got.max() < 1


def test_manifest_and_files(tmp_path: Path) -> None:
    extra = {"config": {"name": "run"}, "metrics": {"auc": 0.5, "gauc": math.nan}, "sizes": [1]}
    path = export(*parts(), INPUTS, tmp_path / "b", manifest=extra)
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "model.ts",
        "weights.safetensors",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["id_rule"] == 1
    assert manifest["config"] == {"name": "run"}
    assert manifest["metrics"] == {"auc": 0.5, "gauc": None}
    assert manifest["versions"]["torch"] == torch.__version__
    for name in ("model.ts", "weights.safetensors"):
        assert manifest["files"][name] == {
            "bytes": (path / name).stat().st_size,
            "sha256": file_digest(path / name),
        }
    assert open_bundle(path).inputs == INPUTS


def test_files_can_be_read_by_those_who_may_read_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        out = export(*parts(), INPUTS, tmp_path / "b", manifest={})
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in out.iterdir()} == dict.fromkeys(
        os.listdir(out), 0o640
    )


def test_two_exports_have_equal_weights_and_graphs(tmp_path: Path) -> None:
    first = export(*parts(), INPUTS, tmp_path / "1", manifest={})
    second = export(*parts(), INPUTS, tmp_path / "2", manifest={})
    for name in ("model.ts", "weights.safetensors"):
        assert file_digest(first / name) == file_digest(second / name)


def test_the_model_can_be_exported_again_from_its_weights(tmp_path: Path) -> None:
    first = export(*parts(), INPUTS, tmp_path / "1", manifest={})
    again = graph()
    torch.nn.init.zeros_(again.model.table.weight)
    load_model(again, str(first / "weights.safetensors"))
    second = export(again.model, again.encoder, again.id_map, INPUTS, tmp_path / "2", manifest={})
    assert np.array_equal(Scorer(first).predict(table()), Scorer(second).predict(table()))


def test_training_flags_are_restored(tmp_path: Path) -> None:
    model, encoder, id_map = parts()
    model.table.eval()
    export(model, encoder, id_map, INPUTS, tmp_path / "b", manifest={})
    assert model.training
    assert model.top.training
    assert not model.table.training


def test_an_older_bundle_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    out = tmp_path / "b"
    export(*parts(), INPUTS, out, manifest={"config": 1})
    export(*parts(), INPUTS, out, manifest={"config": 2})
    assert open_bundle(out).manifest["config"] == 2
    assert os.listdir(tmp_path) == ["b"]  # no temporary or older folder is left
    for taken in (tmp_path / "folder", tmp_path / "file"):
        taken.mkdir() if taken.name == "folder" else taken.write_text("mine")
        with pytest.raises(InputError, match="exists and is not a bundle"):
            export(*parts(), INPUTS, taken, manifest={})
        assert taken.exists()


def test_a_failed_export_leaves_the_older_bundle(tmp_path: Path) -> None:
    out = tmp_path / "b"
    export(*parts(), INPUTS, out, manifest={"config": 1})

    class NotScriptable(Model):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            return [x for x in map(super().forward, [batch])][0]  # noqa: C416, RUF015

    _, encoder, id_map = parts()
    with pytest.raises(Exception, match=r"\S"):
        export(NotScriptable(), encoder, id_map, INPUTS, out, manifest={"config": 2})
    assert open_bundle(out).manifest["config"] == 1
    assert os.listdir(tmp_path) == ["b"]


def test_a_rename_that_fails_puts_the_older_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    export(*parts(), INPUTS, out, manifest={"config": 1})
    rename, calls = os.rename, []

    def fails_second(old: Path, new: Path) -> None:
        calls.append(new)
        if len(calls) == 2:  # the new bundle to its place
            raise OSError("no")
        rename(old, new)

    monkeypatch.setattr("recsys.bundle.folder.os.rename", fails_second)
    with pytest.raises(OSError, match="no"):
        export(*parts(), INPUTS, out, manifest={"config": 2})
    assert open_bundle(out).manifest["config"] == 1
    assert os.listdir(tmp_path) == ["b"]


def test_keys_of_the_exporter_cannot_be_given(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="id_rule"):
        export(*parts(), INPUTS, tmp_path / "b", manifest={"id_rule": 9})
    assert not (tmp_path / "b").exists()


def test_torch_export_with_any_number_of_rows() -> None:
    eager = graph()
    rows, longest = Dim("rows", min=0, max=2**20), Dim("longest", min=0, max=2**10)
    shapes = ({0: rows}, {0: rows}, [{0: rows, 1: longest}], {0: rows})
    program = torch.export.export(eager, tuple(encode(table(5), INPUTS)), dynamic_shapes=shapes)
    module = program.module()
    for count in (0, 1, 2, 7):
        batch = encode(table(count), INPUTS)
        got = module(*batch)
        assert got.shape == (count,)
        assert torch.allclose(got, eager(*batch), rtol=0, atol=1e-6)


def test_verified_export_records_its_proof(tmp_path: Path) -> None:
    out = tmp_path / "b"
    report = export_verified(*parts(), INPUTS, out, manifest={}, rows=table(30))
    assert report.rows == 91  # the rows, nulled, unseen, and one row of nulls
    assert report.max_abs_diff <= 1e-6
    proof = open_bundle(out).manifest["verified"]
    assert proof == {"rows": 91, "max_abs_diff": report.max_abs_diff, "tolerance": 1e-6}
    assert os.listdir(tmp_path) == ["b"]


def test_stress_rows_have_nulls_and_unseen_ids_everywhere() -> None:
    rows = table(20)
    tested = stress_rows(rows, INPUTS)
    assert tested.num_rows == 61
    assert tested.slice(0, 20).equals(rows.select(tested.column_names))
    raw = encode(tested, INPUTS)
    for column in range(raw.ids.shape[1]):
        ids = raw.ids[:, column]
        nulled = ids[20:40] == NULL_ID
        assert 10 <= int(nulled.sum()) < 20
        assert not set(ids[:20].tolist()) & set(ids[40:60].tolist()) - {NULL_ID}
        assert ids[60] == NULL_ID
    assert torch.isnan(raw.floats[60]).all()
    assert raw.lengths[40:43, 0].tolist() == [2, 2, 0]


def test_ids_that_are_also_numbers_are_unseen_but_near() -> None:
    """2**63 as a number would overflow a network that multiplies features."""
    ages = pa.table({"age": pa.array([18, 30, None], pa.int16())})
    both = [InputField("age", "age", "id", "int"), InputField("number", "age", "float", "int")]
    assert stress_rows(ages, both)["age"].to_pylist()[6:9] == [129, 128, 127]
    assert stress_rows(ages, both[:1])["age"].to_pylist()[6:9] == [32767, 32766, 32765]


def test_stress_rows_of_every_type() -> None:
    moment = dt.datetime(2020, 1, 1)
    columns = {
        "bool": pa.array([True, False]),
        "i8": pa.array([1, 2], pa.int8()),
        "u64": pa.array([1, 2], pa.uint64()),
        "coded": pa.array(["a", "b"]).dictionary_encode(),
        "view": pa.array(["a", "b"], pa.string_view()),
        "bytes": pa.array([b"a", b"b"]),
        "fixed": pa.array([b"a", b"b"], pa.binary(1)),
        "ts": pa.array([moment, moment], pa.timestamp("ns", "Asia/Tokyo")),
        "naive": pa.array([moment, moment], pa.timestamp("s")),
        "date": pa.array([moment.date()] * 2),
        "none": pa.nulls(2),
    }
    lists = {
        "fixed_list": pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2)),
        "large": pa.array([["a"], []], pa.large_list(pa.large_string())),
        "coded_list": pa.array([["a"], []]).cast(pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    }
    inputs = [InputField(c, c, "id", "text") for c in columns]
    inputs += [InputField(c, c, "ids", "text") for c in lists]
    tested = stress_rows(pa.table(columns | lists), inputs)
    assert tested.num_rows == 7
    assert encode(tested, inputs).ids.shape == (7, len(columns))


def test_an_altered_weight_fails_verification(tmp_path: Path) -> None:
    model, encoder, id_map = parts()
    expected = expected_scores(graph(), INPUTS, table(30))
    with torch.no_grad():
        model.top[3].bias += 1e-3
    path = export(model, encoder, id_map, INPUTS, tmp_path / "b", manifest={})
    with pytest.raises(
        VerifyError, match=r"row \d+ scores .* from the bundle but .* live, 30 of 30"
    ):
        verify(path, table(30), expected)


def test_a_bundle_that_scores_otherwise_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("recsys.bundle.export")  # the name is the function's too
    honest = module.expected_scores

    def shifted(*arguments: object) -> np.ndarray:
        scores = honest(*arguments)  # type: ignore[arg-type]
        scores[17] += 0.25
        return scores

    monkeypatch.setattr(module, "expected_scores", shifted)
    with pytest.raises(VerifyError, match=r"row 17 scores .* 1 of 91 rows differ"):
        export_verified(*parts(), INPUTS, tmp_path / "b", manifest={}, rows=table(30))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (
            "live",
            r"the model scores some rows as nan, such as \{'key': 'k2', .*lower",
        ),
        ("bundle", r"row 2 scores .*, 1 of 5 rows differ"),
    ],
)
def test_scores_that_are_not_numbers_fail(
    side: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("recsys.bundle.verify")
    path = export(*parts(), INPUTS, tmp_path / "b", manifest={})
    live, elsewhere = np.full(5, 0.5, np.float32), np.full(5, 0.5, np.float32)
    (live if side == "live" else elsewhere)[2] = np.nan
    monkeypatch.setattr(module, "_scores_elsewhere", lambda *_: elsewhere)
    with pytest.raises(VerifyError, match=message):
        verify(path, table(5), live)


def test_the_proof_runs_without_recsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe fails as soon as what it runs needs recsys."""
    module = importlib.import_module("recsys.bundle.verify")
    path = export(*parts(), INPUTS, tmp_path / "b", manifest={})
    source = Path(module.__file__).with_name("probe.py").read_text()
    expected = expected_scores(graph(), INPUTS, table(5))
    for name in ("recsys", "torchrec", "fbgemm_gpu", "mlflow", "pydantic"):
        assert f'"{name}"' in source
    probe = tmp_path / "probe.py"
    probe.write_text(source.replace("    import pyarrow as pa\n", "    import recsys\n"))
    assert probe.read_text() != source
    monkeypatch.setattr(module, "_PROBE", probe)
    with pytest.raises(VerifyError, match="import of recsys halted"):
        verify(path, table(5), expected)
