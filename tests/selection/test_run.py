"""A whole run with a selection: tracked phases, packed sizes, a bundle to export anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import export, train
from recsys.config import parse_config
from recsys.data.synthetic import write_log
from recsys.training.tracking import open_client
from recsys.types import InputError

TREE: dict[str, Any] = {
    "name": "tiny",
    "data": {"train": "train.parquet", "valid": "valid.parquet", "label": "label"},
    "features": {
        "site": {"type": "categorical"},
        "item": {"type": "categorical"},
        "price": {"type": "numeric", "normalise": "standard"},
        "tags": {"type": "bag", "pooling": "mean"},
    },
    "embedding": {"method": "full", "embedding_dim": 8},
    "model": {"name": "deepfm", "hidden_units": [8]},
    "selection": {"method": "optfs", "strength": 0.02, "gate_step": 0.5, "search_epochs": 3},
    "train": {"batch_size": 256, "max_epochs": 2, "learning_rate": 0.01},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    write_log(folder, rows=2000, eval_rows=500, seed=1)
    tracking = {"uri": f"sqlite:///{folder}/mlflow.db", "register_model": False}
    config = parse_config({**TREE, "tracking": tracking})
    return folder, train.run(config, root=str(folder), out=folder / "runs")


def test_phases_are_nested_runs(done: tuple[Path, dict[str, Any]]) -> None:
    folder, result = done
    client = open_client(f"sqlite:///{folder}/mlflow.db", create=False)
    parent = client.get_run(result["run_id"])
    assert parent.data.tags["selection"] == "optfs"
    assert parent.data.metrics["memory/stored_bytes"] == result["memory"]["stored_bytes"]
    query = f"tags.`mlflow.parentRunId` = '{result['run_id']}'"
    nested = {
        run.info.run_name: run for run in client.search_runs([parent.info.experiment_id], query)
    }
    assert set(nested) == {"search", "retrain"}
    assert all(run.info.status == "FINISHED" for run in nested.values())
    search = nested["search"]
    trace = client.get_metric_history(search.info.run_id, "selection/temperature")
    assert [point.value for point in trace] == pytest.approx([1, 1000**0.5, 1000], rel=1e-5)
    report = result["selection"]
    assert search.data.metrics["selection/kept_ratio"] == pytest.approx(
        report["rows_kept"] / report["rows"]
    )
    assert "valid/auc" in nested["retrain"].data.metrics
    assert [f.path for f in client.list_artifacts(search.info.run_id, "plots")] == [
        "plots/gates.png"
    ]
    drawn = {f.path for f in client.list_artifacts(result["run_id"], "plots")}
    assert {"plots/curves_search.png", "plots/curves_retrain.png"} <= drawn


def test_the_run_reports_what_is_served(done: tuple[Path, dict[str, Any]]) -> None:
    _, result = done
    report, memory = result["selection"], result["memory"]
    assert 0 < report["rows_kept"] < report["rows"]
    # vectors of 8 and first-order weights of 1, for kept rows and for price and its missing value
    assert memory["trainable_params"] == 9 * (report["rows_kept"] + 2)
    assert memory["stored_bytes"] < 4 * 9 * report["rows"]
    assert memory["training_bytes"] > 4 * 4 * 9 * report["rows"]
    manifest = json.loads((Path(result["bundle"]) / "manifest.json").read_text())
    assert manifest["memory"] == memory
    assert manifest["selection"] == report
    text = train.render(result).caption
    assert f"kept: {report['rows_kept']:,} of {report['rows']:,} rows" in str(text)


def test_a_packed_bundle_is_exported_anew(done: tuple[Path, dict[str, Any]]) -> None:
    folder, result = done
    again = export.run(Path(result["bundle"]), folder / "again", root=str(folder))
    assert again["verified"]["max_abs_diff"] <= 1e-6
    manifests = [
        json.loads((Path(place) / "manifest.json").read_text())
        for place in (result["bundle"], folder / "again")
    ]
    assert manifests[0]["selection"] == manifests[1]["selection"]


def test_torchrec_is_refused_at_config_time() -> None:
    stored = {"store": "torchrec", "embedding_optimizer": "rowwise_adagrad"}
    with pytest.raises(InputError, match=r"set train\.store torch"):
        parse_config({**TREE, "train": stored})


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"method": "optfss", "strength": 1}, "did you mean 'optfs'"),
        ({"method": "optfs"}, r"selection\.strength: this key is missing"),
        ({"method": "optfs", "strength": 1, "gama": 3}, r"selection\.gama: unknown key"),
        ({"method": "magnitude", "keep": 0}, r"selection\.keep: Input should be greater than 0"),
    ],
)
def test_bad_selections_are_one_clear_line(selection: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_config({**TREE, "selection": selection})
