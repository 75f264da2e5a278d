"""`recsys explain` and `recsys importance` on an AutoInt that learned a planted XOR."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from pipelines import cli, explain, importance, train
from pipelines.sample import spread_rows
from recsys.bundle import export
from recsys.bundle.rebuild import rebuild
from recsys.config import parse_config
from recsys.training import explanations
from recsys.training.metrics import auc
from recsys.training.tracking.runs import RunReader
from recsys.types import InputError
from serving.bundle import open_bundle
from serving.parquet import open_source
from serving.scorer import Scorer

FIELDS = ("a", "b", "c", "d", "e", "f")


class Trained(NamedTuple):
    folder: Path
    bundle: Path
    data: Path
    uri: str
    run_id: str


def log(rows: int, seed: int) -> pa.Table:
    """The label is the XOR of two parities; columns a, c, d and f are noise."""
    values = np.random.default_rng(seed).integers(0, 10, (rows, len(FIELDS)))
    label = (values[:, 1] % 2) ^ (values[:, 4] % 2)
    texts = {name: [f"{name}{v}" for v in values[:, i]] for i, name in enumerate(FIELDS)}
    return pa.table({**texts, "label": label.astype(np.int8)})


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "xor",
        "seed": 1,
        "data": {
            "train": str(folder / "train.parquet"),
            "valid": str(folder / "valid.parquet"),
            "label": "label",
        },
        "features": {name: {"type": "categorical"} for name in FIELDS},
        "embedding": {"method": "full", "embedding_dim": 8, "init_std": 0.3},
        "model": {
            "name": "autoint",
            "layers": 2,
            "heads": 2,
            "attention_dim": 16,
            "hidden_units": [],
        },
        "train": {"batch_size": 250, "max_epochs": 6, "learning_rate": 0.01, "patience": 6},
        "tracking": {"uri": None},
        **changes,
    }


@pytest.fixture(scope="module")
def xor(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("xor")
    for seed, (name, rows) in enumerate({"train": 5000, "valid": 1200}.items()):
        pq.write_table(log(rows, seed), folder / f"{name}.parquet")
    uri = f"sqlite:///{folder}/mlflow.db"
    tracking = {"uri": uri, "experiment": "xor", "register_model": False}
    result = train.run(parse_config(tree(folder, tracking=tracking)), out=folder / "runs")
    assert result["metrics"]["valid"]["auc"] > 0.95
    data = folder / "valid.parquet"
    return Trained(folder, Path(result["bundle"]), data, uri, result["run_id"])


class Recsys(Protocol):
    def __call__(self, *words: object) -> tuple[int, str, str]: ...


@pytest.fixture
def recsys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Recsys:
    """The console script in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recsys", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return code or 0, *capsys.readouterr()

    return call


def printed(rendered: Any) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rendered)
    return console.export_text()


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def logged(xor: Trained, path: str, into: Path) -> Path | None:
    return RunReader(xor.uri).fetch(xor.run_id, path, into)


# -- explain -----------------------------------------------------------------------------------


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
    assert table["row"].unique().to_pylist() == list(range(0, 1200, 4))
    assert table["field"].unique().to_pylist() == list(FIELDS)
    maps = table["weight"].to_numpy().reshape(300, 2, 6, 6)
    np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(maps.mean(0), result["layers"], atol=1e-6)
    assert maps.std(0).max() > 0.01
    alone = tmp_path / "alone.parquet"
    pq.write_table(pq.read_table(xor.data).slice(8, 1), tmp_path / "one.parquet")
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


def test_the_picture_joins_the_run(xor: Trained, tmp_path: Path) -> None:
    before = logged(xor, "plots/attention.png", tmp_path).read_bytes()
    explain.run(xor.bundle, str(xor.data), rows=20, uri=xor.uri)
    importance.run(xor.bundle, str(xor.data), rows=100, repeats=1, uri=xor.uri)
    assert logged(xor, "plots/attention.png", tmp_path).read_bytes() != before
    assert is_png(logged(xor, "plots/importance.png", tmp_path))
    (record,) = RunReader(xor.uri).find([xor.run_id])
    assert record.status == "FINISHED"


# -- importance --------------------------------------------------------------------------------


def test_useful_columns_rank_first_and_noise_covers_zero(xor: Trained, tmp_path: Path) -> None:
    picture = tmp_path / "bars.png"
    result = importance.run(xor.bundle, str(xor.data), out=[picture])
    table = pq.read_table(xor.data)
    scores = Scorer(xor.bundle).predict(table)
    assert result["auc"] == pytest.approx(auc(table["label"].to_numpy(), scores), abs=1e-6)
    columns = result["columns"]
    assert {row["column"] for row in columns[:2]} == {"b", "e"}
    for row in columns[:2]:
        # Without one of the two there is nothing to know: the AUC falls to a half.
        assert row["auc_drop"] == pytest.approx(result["auc"] - 0.5, abs=0.05)
        assert row["auc_drop_low"] > 0.3
        assert row["logloss_rise_low"] > 0.3
        assert row["features"] == [row["column"]]
    for row in columns[2:]:
        assert row["auc_drop_low"] <= 0 <= row["auc_drop_high"], row
    assert is_png(picture)
    json.dumps(result)
    text = printed(importance.render(result))
    assert "DeLong" in text
    assert f"{columns[0]['auc_drop']:+.5f} [{columns[0]['auc_drop_low']:+.5f}, " in text


def test_importance_on_the_command_line_is_repeatable_in_any_order(
    xor: Trained, tmp_path: Path, recsys: Recsys
) -> None:
    table = pq.read_table(xor.data)
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(pa.array(order)), tmp_path / "other.parquet")
    found = []
    for data in (xor.data, tmp_path / "other.parquet"):
        code, out, _ = recsys("importance", xor.bundle, data, "--repeats", 2, "--json")
        assert code == 0
        found.append(json.loads(out)["columns"])
    assert found[0] == found[1]
    code, out, _ = recsys("importance", xor.bundle, xor.data, "--repeats", 2)
    assert code == 0
    assert "drop in AUC" in out


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


def test_labels_of_one_kind_or_no_kind_are_refused(xor: Trained, tmp_path: Path) -> None:
    table = pq.read_table(xor.data)
    place = table.schema.get_field_index("label")
    for values, said in (
        ([1] * 1200, "1200 of 1200 rows have label 1"),
        ([0, 1] + [0] * 1198, "1 of 1200 rows have label 1"),
        ([0, 1, 2] + [0] * 1197, "row 2 .*: 2.* is no label"),
    ):
        labels = pa.array(values, pa.int8())
        pq.write_table(table.set_column(place, "label", labels), tmp_path / "bad.parquet")
        with pytest.raises(InputError, match=said):
            importance.run(xor.bundle, str(tmp_path / "bad.parquet"))


# -- rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (3, [0, 3, 6]), (10, [*range(10)]), (99, [*range(10)]), (4, [0, 2, 5, 7])],
)
def test_rows_are_spread_over_all_files(tmp_path: Path, count: int, expected: list[int]) -> None:
    for part, numbers in enumerate(([0, 1, 2, 3], [4], [5, 6, 7, 8, 9])):
        pq.write_table(pa.table({"x": numbers}), tmp_path / f"{part}.parquet")
    found, values = [], []
    for first, rows, picks in spread_rows(open_source(str(tmp_path)), ["x"], count):
        found += (first + picks).tolist()
        values += rows.take(pa.array(picks))["x"].to_pylist()
    assert found == values == expected
