"""`recsys explain` on an AutoInt that learned a planted XOR."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from planted_xor import FIELDS, Recsys, Trained, is_png, printed, tree

from pipelines import explain, importance, train
from pipelines.sample import spread_rows
from recsys.bundle import export
from recsys.bundle.rebuild import rebuild
from recsys.config import parse_config
from recsys.training import explanations
from recsys.training.tracking.runs import RunReader
from recsys.types import InputError
from serving.bundle import open_bundle


def logged(xor: Trained, path: str, into: Path) -> Path | None:
    return RunReader(xor.uri).fetch(xor.run_id, path, into)


def test_the_planted_pair_is_among_the_strongest(xor: Trained) -> None:
    result = explain.run(xor.bundle, str(xor.data))
    assert result["fields"] == list(FIELDS)
    assert ["b", "e"] in [pair["fields"] for pair in result["pairs"][:3]]
    assert result["rows"] == 1200
    assert result["max_abs_diff"] <= 1e-6
    for maps in ([result["attention"]], result["layers"]):
        np.testing.assert_allclose(np.sum(maps, axis=-1), 1.0, atol=1e-6)
    assert np.shape(result["layers"]) == (2, 6, 6)
    np.testing.assert_allclose(np.mean(result["layers"], axis=0), result["attention"])
    json.dumps(result)
    assert "b - e" in printed(explain.render(result))


def test_maps_of_rows_average_to_the_global_map(
    xor: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explanations, "BATCH_ROWS", 70)  # several batches, the last one smaller
    file = tmp_path / "rows.parquet"
    result = explain.run(xor.bundle, str(xor.data), rows=300, out=[file])
    table = pq.read_table(file)
    assert table.schema.names == ["row", "layer", "field", "attends_to", "weight"]
    assert len(table) == 300 * 2 * 6 * 6
    # Rows are numbered as in the data, and the map of each is its own.
    rows = table["row"].unique().to_pylist()
    assert [row // 4 for row in rows] == list(range(300))  # one of every four
    assert table["field"].unique().to_pylist() == list(FIELDS)
    maps = table["weight"].to_numpy().reshape(300, 2, 6, 6)
    np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(maps.mean(0), result["layers"], atol=1e-6)
    assert maps.std(0).max() > 0.01
    alone = tmp_path / "alone.parquet"
    pq.write_table(pq.read_table(xor.data).slice(rows[2], 1), tmp_path / "one.parquet")
    explain.run(xor.bundle, str(tmp_path / "one.parquet"), out=[alone])
    one = pq.read_table(alone)
    assert one["row"].unique().to_pylist() == [0]
    np.testing.assert_allclose(one["weight"].to_numpy().reshape(2, 6, 6), maps[2], atol=1e-5)
    entry = one.slice(6 * 6 + 6 * 2 + 5, 1).to_pylist()[0]
    assert (entry["layer"], entry["field"], entry["attends_to"]) == (2, "c", "f")


def test_zero_queries_and_keys_attend_to_all_fields_alike(xor: Trained, tmp_path: Path) -> None:
    opened = open_bundle(xor.bundle)
    rebuilt = rebuild(opened)
    graph = rebuilt.graph
    with torch.no_grad():
        for layer in graph.model.interacting:
            layer.weight[:2] = 0
    export(
        graph.model,
        graph.encoder,
        graph.id_map,
        opened.inputs,
        tmp_path / "flat",
        manifest={"config": opened.manifest["config"]},
        features=rebuilt.features,
    )
    result = explain.run(tmp_path / "flat", str(xor.data), rows=50)
    np.testing.assert_allclose(result["layers"], 1 / 6, atol=1e-7)
    assert [pair["lift"] for pair in result["pairs"]] == pytest.approx([1.0] * 15)
    assert result["run_id"] is None


def test_training_logs_the_picture(xor: Trained, tmp_path: Path) -> None:
    picture = logged(xor, "plots/attention.png", tmp_path)
    assert picture is not None
    assert is_png(picture)


def test_explain_on_the_command_line(xor: Trained, tmp_path: Path, recsys: Recsys) -> None:
    unlabelled = tmp_path / "new.parquet"
    pq.write_table(pq.read_table(xor.data).drop_columns(["label"]).slice(0, 100), unlabelled)
    outputs = ["--out", "a/maps.png", "--out", "a/rows.parquet"]
    code, out, _ = recsys("explain", xor.bundle, unlabelled, "--json", "--rows", 50, *outputs)
    assert code == 0
    result = json.loads(out)
    assert result["rows"] == 50
    assert result["out"] == ["a/maps.png", "a/rows.parquet"]
    assert is_png(tmp_path / "a" / "maps.png")
    assert len(pq.read_table(tmp_path / "a" / "rows.parquet")) == 50 * 2 * 36


def test_only_picked_rows_are_held(xor: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[weakref.ref[pa.RecordBatch]] = []

    def watched(*args: Any) -> Iterator[Any]:
        for first, batch, picks in spread_rows(*args):
            assert sum(known() is not None for known in batches) <= 1  # the loop's own last one
            batches.append(weakref.ref(batch))
            yield first, batch, picks

    monkeypatch.setattr(explain, "spread_rows", watched)
    files = [xor.data, xor.folder / "train.parquet", xor.data.with_name("copy.parquet")]
    shutil.copy(xor.data, files[-1])
    explain.run(xor.bundle, [str(file) for file in files], rows=50)
    assert len(batches) >= 3


def test_relative_paths_start_from_the_data_root(
    xor: Trained, tmp_path: Path, recsys: Recsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = xor.data.name
    root = ["--data-root", xor.data.parent]
    for verb in (["explain", xor.bundle, name], ["importance", xor.bundle, name]):
        code, out, errors = recsys(*verb, "--rows", 40, *root, "--json")
        assert (code, json.loads(out)["rows"]) == (0, 40), errors
    monkeypatch.setenv("RECSYS_DATA_ROOT", str(xor.data.parent))
    code, _, errors = recsys("score", xor.bundle, name, "out.parquet", "--keep", "a, label")
    assert code == 0, errors
    assert pq.read_schema(tmp_path / "out.parquet").names == ["a", "label", "score"]


def test_values_are_shown_as_they_are_and_json_is_json(
    xor: Trained, tmp_path: Path, recsys: Recsys
) -> None:
    rows = pq.read_table(xor.data).slice(0, 40)
    marked = pa.array(["[sale] shoe", "[/b] x"] * 20)
    rows = rows.set_column(rows.schema.get_field_index("label"), "label", pa.array([0] * 40))
    pq.write_table(rows.append_column("shop", marked), tmp_path / "marked.parquet")
    words = ["evaluate", xor.bundle, "--data", "marked.parquet", *["--slice", "shop"] * 2]
    code, out, errors = recsys(*words)
    assert code == 0, errors
    assert "[sale] shoe" in out
    assert "[/b] x" in out
    code, out, errors = recsys(*words, "--json")
    assert code == 0, errors

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    result = json.loads(out, parse_constant=refuse)
    assert result["metrics"]["data"]["auc"] is None  # of one class
    assert len(result["slices"]["shop"]) == 2


def test_a_bundle_without_config_and_a_file_as_folder_are_one_line(
    xor: Trained, tmp_path: Path, recsys: Recsys
) -> None:
    opened = open_bundle(xor.bundle)
    rebuilt = rebuild(opened)
    parts = (rebuilt.graph.model, rebuilt.graph.encoder, rebuilt.graph.id_map, opened.inputs)
    export(*parts, tmp_path / "bare", manifest={}, features=rebuilt.features)
    code, _, errors = recsys("evaluate", "bare", "--data", xor.data)
    assert (code, len(errors.strip().splitlines())) == (2, 1), errors
    assert "holds no config" in errors
    (tmp_path / "file").write_text("")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree(xor.folder)))
    code, _, errors = recsys("train", "run.yaml", "--out", "file")
    assert (code, len(errors.strip().splitlines())) == (1, 1), errors
    assert "Not a directory" in errors


def test_the_picture_joins_the_run(xor: Trained, tmp_path: Path) -> None:
    before = logged(xor, "plots/attention.png", tmp_path).read_bytes()
    explain.run(xor.bundle, str(xor.data), rows=20, uri=xor.uri)
    importance.run(xor.bundle, str(xor.data), rows=100, repeats=1, uri=xor.uri)
    assert logged(xor, "plots/attention.png", tmp_path).read_bytes() != before
    assert is_png(logged(xor, "plots/importance.png", tmp_path))
    (record,) = RunReader(xor.uri).find([xor.run_id])
    assert record.status == "FINISHED"


# -- errors ------------------------------------------------------------------------------------


def test_a_model_without_attention_is_refused(xor: Trained, tmp_path: Path) -> None:
    plain = parse_config(tree(xor.folder, model={"name": "lr"}, train={"max_epochs": 1}))
    bundle = Path(train.run(plain, out=tmp_path)["bundle"])
    with pytest.raises(InputError, match=r"model 'lr' has no attention .* recsys importance"):
        explain.run(bundle, str(xor.data))
    assert importance.run(bundle, str(xor.data), repeats=1, rows=200)["columns"]
    with pytest.raises(InputError, match="trained without tracking"):
        importance.run(bundle, str(xor.data), uri=xor.uri)


@pytest.mark.parametrize("verb", ["explain", "importance"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{bundle}", "nothing.parquet"], "nothing.parquet"),
        (["nowhere", "{data}"], "nowhere: no such bundle folder"),
        (["{bundle}", "{data}", "--out", "maps.svg"], "maps.svg: must end in .png"),
        (["{bundle}", "{data}", "--uri", "sqlite:///none.db"], "no database at"),
        (["{bundle}", "less.parquet"], "column 'c' (text) is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    xor: Trained, tmp_path: Path, recsys: Recsys, verb: str, words: list[str], said: str
) -> None:
    pq.write_table(pq.read_table(xor.data).drop_columns(["c"]), tmp_path / "less.parquet")
    filled = [word.format(bundle=xor.bundle, data=xor.data) for word in words]
    code, out, errors = recsys(verb, *filled)
    assert (code, out) == (2, "")
    (line,) = errors.strip().splitlines()
    assert line.startswith("recsys: ")
    assert said in line


def test_another_store_and_twice_the_same_file_are_refused(xor: Trained, tmp_path: Path) -> None:
    from recsys.training.tracking import MlflowTracker

    uri = f"sqlite:///{tmp_path}/other.db"
    tracker = MlflowTracker(uri=uri, experiment="other", system_metrics=False)
    tracker.start("other", params={})
    tracker.finish()
    with pytest.raises(InputError, match=f"no run '{xor.run_id}' in .*the store that its training"):
        explain.run(xor.bundle, str(xor.data), uri=uri)
    twice = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(InputError, match=r"b\.png: .*a\.png is there already"):
        explain.run(xor.bundle, str(xor.data), out=twice)
