"""Configs x seeds: numbers, resuming, workers, the report."""

from __future__ import annotations

import json
import math
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from pipelines import benchmark, grid
from pipelines.benchmark_report import BEGIN, END, markdown, summary
from recsys.bundle import VerifyError
from recsys.config import AnyRunConfig, parse_click_config
from recsys.data.synthetic import PlantedLog, write_log
from recsys.training.progress import SilentReporter
from recsys.training.trainer import Interrupted
from recsys.types import InputError


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> PlantedLog:
    return write_log(tmp_path_factory.mktemp("log"), rows=1500, eval_rows=600, seed=1)


def config(folder: Path, log: PlantedLog, stem: str, **changes: Any) -> Path:
    path = folder / f"{stem}.yaml"
    tree = {
        "name": stem,
        "seed": 5,
        "data": {"train": str(log.train), "valid": str(log.valid), "test": str(log.test)},
        "features": {"site": {"type": "categorical"}, "item": {"type": "categorical"}},
        "embedding": {"method": "full", "embedding_dim": 4},
        "model": {"name": "lr"},
        "train": {"batch_size": 256, "max_epochs": 2, "learning_rate": 0.02},
        "tracking": {"uri": None},
    }
    tree["data"]["label"] = "label"
    path.write_text(yaml.safe_dump(tree | changes))
    return path


def test_the_table_is_the_mean_over_seeds_beside_what_is_published(
    tmp_path: Path, log: PlantedLog
) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    tracking = {"uri": store, "experiment": "grid", "register_model": False}
    configs = [config(tmp_path, log, "lr", tracking=tracking)]
    configs.append(config(tmp_path, log, "fm", model={"name": "fm"}, tracking=tracking))
    published = tmp_path / "published.yaml"
    published.write_text("fm: {auc: 0.75, logloss: 0.5, source: a paper}\n")
    report = tmp_path / "RESULTS.md"
    report.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    out = tmp_path / "runs"
    result = benchmark.run(
        configs, seeds=2, published=published, out=out, report=report, command="recsys benchmark"
    )

    rows = {row["config"]: row for row in result["rows"]}
    assert list(rows) == ["lr", "fm"]
    for label, row in rows.items():
        saved = [json.loads(f.read_text()) for f in sorted((out / "benchmark").glob(f"{label}-s*"))]
        aucs = [one["metrics"]["test"]["auc"] for one in saved]
        assert row["seeds"] == [5, 6]
        assert len(set(aucs)) == 2, "two seeds give two results"
        assert row["auc"] == pytest.approx(sum(aucs) / 2)
        assert row["auc_sd"] == pytest.approx(statistics.stdev(aucs))
    text = report.read_text()
    assert text.startswith(f"before\n{BEGIN}\n    recsys benchmark\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    difference = rows["fm"]["auc"] - 0.75
    assert f"| 0.7500 | {difference:+.4f} |" in text
    assert "Published: a paper." in text

    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("grid")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_name for run in parents] == ["benchmark"]
    nested = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parents[0].info.run_id}
    assert sorted(run.info.run_name or "" for run in nested) == ["fm", "fm", "lr", "lr"]
    plots = {file.path for file in client.list_artifacts(parents[0].info.run_id, "plots")}
    assert plots == {"plots/benchmark.png"}


def test_what_is_done_is_not_done_again_and_workers_change_nothing(
    tmp_path: Path, log: PlantedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [config(tmp_path, log, "lr")]
    alone = benchmark.run(configs, seeds=2, out=tmp_path / "one")
    both = benchmark.run(configs, seeds=2, out=tmp_path / "two", workers=2)
    assert both["rows"][0]["auc_values"] == alone["rows"][0]["auc_values"]

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(grid.train, "run", forbidden)
    again = benchmark.run(configs, seeds=2, out=tmp_path / "one")
    assert again["rows"] == alone["rows"]

    other = write_log(tmp_path / "log", rows=1500, eval_rows=600, seed=2)
    found = benchmark.run([config(tmp_path, other, "lr")], seeds=2, out=tmp_path / "one")
    assert len(found["failed"]) == 2  # the same config on other data
    assert "AssertionError: trained again" in found["failed"][0]


def stopped(tree: dict[str, Any], key: str, *, folder: Path) -> dict[str, Any]:
    """In place of a run: the first is interrupted, the others take their time."""
    (folder / key).touch()
    if tree["seed"] == 0:
        raise Interrupted("stopped")
    time.sleep(1)
    return {}


def test_nothing_new_starts_after_an_interrupt(tmp_path: Path, log: PlantedLog) -> None:
    run = parse_click_config(yaml.safe_load(config(tmp_path, log, "lr").read_text()))
    jobs = [grid.Job("lr", run.model_copy(update={"seed": seed}), "d") for seed in range(12)]
    (tmp_path / "started").mkdir()
    work = partial(stopped, folder=tmp_path / "started")
    with pytest.raises(Interrupted):
        list(grid._each(jobs, work, 2, SilentReporter()))
    assert len(list((tmp_path / "started").iterdir())) < 8


def test_a_grid_in_another_store_starts_a_run_of_its_own(tmp_path: Path, log: PlantedLog) -> None:
    for name in ("one", "two"):
        tracking = {"uri": f"sqlite:///{tmp_path}/{name}.db", "experiment": "grid"}
        files = [config(tmp_path, log, "lr", tracking=tracking)]
        assert not benchmark.run(files, seeds=1, out=tmp_path / "out")["failed"]
        client = MlflowClient(tracking["uri"])
        found = client.get_experiment_by_name("grid")
        assert found is not None
        runs = client.search_runs([found.experiment_id])
        assert "benchmark" in {run.info.run_name for run in runs}


def test_one_bad_run_does_not_cost_the_others(tmp_path: Path, log: PlantedLog) -> None:
    bad = config(tmp_path, log, "bad", features={"nowhere": {"type": "categorical"}})
    result = benchmark.run([bad, config(tmp_path, log, "lr")], seeds=1, out=tmp_path / "runs")
    assert [row["config"] for row in result["rows"]] == ["lr"]
    assert len(result["failed"]) == 1
    assert "nowhere" in result["failed"][0]


def test_a_bundle_that_cannot_be_proved_costs_its_own_run_alone(
    tmp_path: Path, log: PlantedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = grid.train.run

    def fails_once(config: AnyRunConfig, **options: Any) -> Any:
        if config.seed == 5:
            raise VerifyError("scores differ by 1.0")
        return train(config, **options)

    monkeypatch.setattr(grid.train, "run", fails_once)
    result = benchmark.run([config(tmp_path, log, "lr")], seeds=2, out=tmp_path / "runs")
    assert [row["seeds"] for row in result["rows"]] == [[6]]
    (line,) = result["failed"]
    assert "scores differ by 1.0" in line


def result(auc: float, parameters: int) -> dict[str, Any]:
    return {
        "metrics": {"test": {"auc": auc, "logloss": 0.5}},
        "parameters": parameters,
        "memory": {"stored_bytes": 4 * parameters},
        "epochs": 2,
        "seconds": 1.0,
        "rows_per_second": 10.0,
    }


def test_a_row_is_the_mean_of_its_seeds_in_size_too() -> None:
    row = summary("optfs", {5: result(0.75, 100), 6: result(0.25, 200)}, {})
    assert (row["parameters"], row["stored_bytes"]) == (150, 600)
    assert row["auc"] == 0.5
    assert row["auc_sd"] == pytest.approx(0.5 / math.sqrt(2))
    assert "gauc" not in row


def test_a_test_split_of_one_class_costs_its_figures_and_not_the_table() -> None:
    row = summary("lr", {5: result(math.nan, 1), 6: result(math.nan, 1)}, {})
    assert "| nan ± nan |" in markdown([row], "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 0.75", "lr: must be a mapping of auc, logloss and source"),
        ("lr: {acu: 0.75}", "lr: must be a mapping of auc, logloss and source"),
        ("lr: {auc: high}", "lr.auc: 'high' is no number"),
    ],
)
def test_published_values_are_read_before_anything_runs(
    tmp_path: Path, log: PlantedLog, text: str, message: str
) -> None:
    published = tmp_path / "published.yaml"
    published.write_text(text)
    runs = tmp_path / "runs"
    with pytest.raises(InputError, match=message):
        benchmark.run([config(tmp_path, log, "lr")], published=published, out=runs)
    assert not runs.exists()


def test_bad_input_is_one_line(tmp_path: Path, log: PlantedLog) -> None:
    path = config(tmp_path, log, "lr")
    with pytest.raises(InputError, match="given twice"):
        benchmark.run([path, path], out=tmp_path)
    no_test = {"train": str(log.train), "label": "label"}
    with pytest.raises(InputError, match="needs data"):
        benchmark.run([config(tmp_path, log, "no_test", data=no_test)], out=tmp_path)
    page = tmp_path / "page.md"
    page.write_text("a page of another kind\n")
    runs = tmp_path / "runs"
    with pytest.raises(InputError, match="has no lines"):
        benchmark.run([path], seeds=1, out=runs, report=page)
    assert not runs.exists(), "found out before anything ran"
    assert page.read_text() == "a page of another kind\n"
