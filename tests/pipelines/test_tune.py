"""`recsys tune`: trials out of a space, judged on valid; a config of the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from planted_xor import Recsys, is_png, log, printed, tree

from pipelines import train, tune
from pipelines.tune_search import Search
from pipelines.tune_space import Space, with_values
from recsys.config import load_config, parse_config, public
from recsys.training.progress import SilentReporter
from recsys.training.trainer import Interrupted
from recsys.types import InputError

SPACE = {
    "train.learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
    "model.layers": {"low": 1, "high": 2},
    "embedding": [
        {"method": "full", "embedding_dim": 8, "init_std": 0.3},
        {"method": "full", "embedding_dim": 4, "init_std": 0.3},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tune")
    for seed, (name, rows) in enumerate({"train": 1500, "valid": 600, "test": 600}.items()):
        pq.write_table(log(rows, seed), made / f"{name}.parquet")
    (made / "space.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    return made


def small(folder: Path, **changes: Any) -> dict[str, Any]:
    made = tree(folder, **changes)
    made["train"] = {**made["train"], "max_epochs": 4, "batch_size": 100, "learning_rate": 0.002}
    made["data"] = {**made["data"], "test": str(folder / "test.parquet")}
    return made


def told(result: dict[str, Any]) -> list[Any]:
    """What a search found, without what differs from run to run."""
    return [
        {k: v for k, v in record.items() if k not in ("seconds", "run_id")}
        for record in result["trials"]
    ]


@pytest.fixture(scope="module")
def searched(folder: Path) -> dict[str, Any]:
    config = parse_config(small(folder))
    return tune.run(config, folder / "space.yaml", trials=14, out=folder / "whole")


def test_the_best_is_better_than_the_config_and_trains_to_the_same(
    folder: Path, searched: dict[str, Any]
) -> None:
    records, best = searched["trials"], searched["best"]
    first = records[0]
    assert first["values"] == {
        "train.learning_rate": 0.002,
        "model.layers": 2,
        "embedding": SPACE["embedding"][0],
    }
    complete = [record for record in records if record["state"] == "complete"]
    assert best["value"] == max(record["value"] for record in complete)
    assert best["value"] > first["value"] + 0.1  # at .002 four epochs learn no XOR
    tuned = load_config(best["config"])
    assert tuned.name == "xor-tuned"
    assert tuned.train.learning_rate == best["values"]["train.learning_rate"]
    result = train.run(tuned, out=folder / "tuned")
    assert result["metrics"]["valid"]["auc"] == best["value"]
    left = {path.name for path in Path(searched["folder"]).iterdir()}
    assert left >= {"xor_tuned.yaml", "trial-0014.json"}
    assert "trial-0014" not in left  # checkpoints


def test_trials_behind_the_median_are_cut(folder: Path, searched: dict[str, Any]) -> None:
    cut = [record for record in searched["trials"] if record["state"] == "cut"]
    assert cut
    for record in cut:
        epochs = len(record["by_epoch"])
        assert 2 <= epochs <= 4
        before = searched["trials"][: record["trial"] - 1]
        others = sorted(
            r["by_epoch"][epochs - 1]
            for r in before
            if r["state"] == "complete" and "by_epoch" in r
        )
        assert len(others) >= 5
        assert max(record["by_epoch"]) < others[-1]


def test_a_search_that_stopped_comes_to_what_one_run_would(
    folder: Path, tmp_path: Path, searched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(small(folder))

    class Stops(SilentReporter):
        """Stops trial 12, which is drawn by what the others found, in its second epoch."""

        def say(self, line: str) -> None:
            if self.armed and line.startswith("epoch 1"):
                raise Interrupted("stopped")
            self.armed = self.armed or line.startswith("trial 11/")

        armed = False

    with pytest.raises(Interrupted):
        tune.run(config, folder / "space.yaml", trials=14, out=tmp_path, reporter=Stops())
    some = tune.run(config, folder / "space.yaml", trials=13, out=tmp_path)
    assert told(some) == told(searched)[:13]
    whole = tune.run(config, folder / "space.yaml", trials=14, out=tmp_path)
    assert told(whole) == told(searched)
    assert whole["best"]["values"] == searched["best"]["values"]


def test_settings_that_fail_cost_only_themselves(folder: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("model.heads: [2, 3]\nmodel.attention_dim: [8, 9]\n")
    config = parse_config(small(folder))
    result = tune.run(config, space, trials=8, out=tmp_path)
    values = {tuple(r["values"].values()): r for r in result["trials"]}
    states = {key: record["state"] for key, record in values.items()}
    assert {"complete", "failed"} == set(states.values())
    for (heads, wide), state in states.items():
        assert (state == "failed") == (wide % heads > 0)
    again = [record for record in result["trials"] if "same_as" in record]
    assert again  # four settings, eight trials: none is trained twice
    for record in again:
        assert record["value"] == result["trials"][record["same_as"] - 1]["value"]
    shown = printed(tune.render(result))
    assert "failed: model.heads=" in shown
    assert f"recsys train {result['best']['config']}" in " ".join(shown.split())


class Breaks:
    """Stands for training: values by the settings, some of which come again, fail or break."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.trained = broken, 0

    def __call__(self, number: int, trial: Any, values: Any, checkpoints: Path) -> Any:
        layers, heads = values["model.layers"], values["model.heads"]
        by_epoch = []
        for epoch in range(4):
            by_epoch.append(0.5 + 0.02 * layers + 0.01 * heads * epoch)
            trial.report(by_epoch[-1], epoch)
            if layers == 3:
                raise InputError("three do not fit")
            if trial.should_prune():
                break
        if self.broken and number > 4:
            raise RuntimeError("no memory")
        self.trained += 1
        cut = len(by_epoch) < 4
        state = "cut" if cut else "complete"
        sizes = {"stored_bytes": 1, "parameters": 1, "seconds": 1.0, "run_id": None}
        return {"state": state, "value": max(by_epoch), "by_epoch": by_epoch, **sizes}


def test_settings_that_come_again_or_fail_leave_no_trace_of_a_stop(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("model.layers: {low: 1, high: 4}\nmodel.heads: [1, 2, 4, 8]\n")
    config = parse_config(small(folder))
    monkeypatch.setattr(Search, "_train", lambda _, *given: Breaks()(*given))
    whole = told(tune.run(config, space, trials=24, out=tmp_path / "whole"))
    assert {record["state"] for record in whole} == {"complete", "cut", "failed"}
    assert any("same_as" in record for record in whole)
    for stop in (12, 17, 24):
        parts = told(tune.run(config, space, trials=stop, out=tmp_path / "parts"))
        assert parts == whole[:stop]


def test_what_the_machine_broke_is_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("model.layers: {low: 1, high: 2}\nmodel.heads: [1, 2, 4, 8]\n")
    config = parse_config(small(folder))
    broken, whole = Breaks(broken=True), Breaks()
    monkeypatch.setattr(Search, "_train", lambda _, *given: broken(*given))
    first = tune.run(config, space, trials=6, out=tmp_path)
    reasons = [record.get("reason") for record in first["trials"]]
    assert reasons[4:] == ["RuntimeError: no memory"] * 2
    assert reasons[:4] == [None] * 4
    monkeypatch.setattr(Search, "_train", lambda _, *given: whole(*given))
    again = tune.run(config, space, trials=6, out=tmp_path)
    assert [record["state"] for record in again["trials"]] == ["complete"] * 6
    assert whole.trained <= 2


@pytest.mark.parametrize(
    ("selection", "monitor"),
    [
        ({"method": "deeplight", "keep": 0.1, "paper": True}, "logloss"),
        ({"method": "magnitude", "keep": 0.3}, "auc"),
    ],
)
def test_a_trial_has_the_value_and_the_size_of_the_weights_that_stay(
    folder: Path, tmp_path: Path, selection: dict[str, Any], monitor: str
) -> None:
    made = small(folder, selection=selection)
    made["train"] = {**made["train"], "monitor": monitor}
    space = tmp_path / "space.yaml"
    space.write_text("train.learning_rate: [0.002, 0.02]\n")
    config = parse_config(made)
    result = tune.run(config, space, trials=1, out=tmp_path)
    (trial,) = result["trials"]
    alone = train.run(config, out=tmp_path / "alone")
    assert trial["value"] == pytest.approx(alone["metrics"]["valid"][monitor], abs=1e-12)
    assert trial["stored_bytes"] == alone["memory"]["stored_bytes"]


def test_passwords_stay_out_of_the_tracker(folder: Path, tmp_path: Path) -> None:
    made = small(folder)
    made["tracking"] = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "register_model": False}
    made["train"] = {**made["train"], "max_epochs": 1}
    for name in ("train", "valid"):
        made["data"][name] = "file://bob:hunter2@" + made["data"][name]
    config = parse_config(made)
    assert "hunter2" not in json.dumps(public(config))
    made["data"] = small(folder)["data"]
    made["tracking"] = {**made["tracking"], "experiment": "http://bob:hunter2@there"}
    space = tmp_path / "space.yaml"
    space.write_text("model.layers: [1, 2]\n")
    tune.run(parse_config(made), space, trials=1, out=tmp_path / "runs")
    (logged,) = tmp_path.rglob("tuned.yaml")
    assert "http://" in logged.read_text()
    assert "hunter2" not in logged.read_text()


def test_command_line_tracks_nested_trials_and_pictures(folder: Path, recsys: Recsys) -> None:
    uri = f"sqlite:///{folder}/mlflow.db"
    tracking = {"uri": uri, "experiment": "tune", "register_model": False}
    (folder / "xor.yaml").write_text(yaml.safe_dump(small(folder, tracking=tracking)))
    words = ("tune", folder / "xor.yaml", folder / "space.yaml", "--trials", 2, "--no-prune")
    code, stdout, stderr = recsys(*words, "--out", folder / "runs", "--json")
    assert code == 0, stderr
    assert "Warning" not in stderr
    assert "trial 2/2: valid auc " in stderr
    result = json.loads(stdout)
    assert len({result["run_id"], *(r["run_id"] for r in result["trials"])}) == 3
    for name in ("trials", "settings"):
        (picture,) = folder.rglob(f"{result['run_id']}/artifacts/plots/{name}.png")
        assert is_png(picture)
    (table,) = folder.rglob("tune.md")
    assert len(table.read_text().splitlines()) == 2 + 2
    code, stdout, stderr = recsys(*words, "--out", folder / "runs", "--json")
    assert json.loads(stdout)["run_id"] == result["run_id"]
    assert "epoch" not in stderr  # nothing is trained again


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a mapping of keys of a config, such as train.learning_rate"),
        ("train.learning_rat: [0.1, 0.2]", "unknown key 'learning_rat'|did you mean"),
        ("train.learning_rate: [0.1]", "must list two or more different values"),
        ("train.learning_rate: [0.1, 0.1]", "must list two or more different values"),
        ("train.learning_rate: 0.1", "must be a list of values, or {low: A, high: B}"),
        ("train.learning_rate: {low: 2, high: 1}", "low 2 must be below high 1"),
        ("train.learning_rate: {low: 0, high: 1, log: true}", "low 0 must be above 0 for log"),
        ("train.learning_rate: {low: 0, high: 1, step: 1}", "step: unknown key"),
        ("train.learning_rate: {low: -2.0, high: -1.0}", "no value fits the config"),
        (
            "embedding.embedding_dim: [4, 8]\nembedding: [{}, {a: 1}]",
            "lies within embedding, which",
        ),
        ("on: [1, 2]", "True: trials are compared on the same rows"),
        ("model.dropout: [2026-11-30, 0.1]", "date is not JSON serializable; put quotes around"),
        ("train.learning_rate: {low: 0.001, high: .inf}", "should be a finite number"),
        ("model.batch_norm: {low: false, high: true}", "False is no number"),
        ("train.monitor: [auc, logloss]", "compared on the same rows by the same metric"),
        ("data.label: [a, b]", "compared on the same rows by the same metric"),
    ],
)
def test_spaces_that_cannot_be(folder: Path, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Space.load(path, parse_config(small(folder)))


def test_a_log_without_valid_rows(folder: Path, tmp_path: Path) -> None:
    made = small(folder)
    del made["data"]["valid"]
    with pytest.raises(InputError, match="trials are judged on valid; set"):
        tune.run(parse_config(made), folder / "space.yaml", out=tmp_path)


def test_whole_ends_give_whole_numbers_only_where_a_config_takes_no_others(
    folder: Path, tmp_path: Path
) -> None:
    config = parse_config(small(folder))
    path = tmp_path / "space.yaml"
    path.write_text(
        "model.layers: {low: 1, high: 4, log: true}\n"
        "model.dropout: {low: 0, high: 1}\n"
        "train.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"  # text to YAML
    )
    space = Space.load(path, config)
    kinds = {key: type(d).__name__ for key, d in space.distributions().items()}
    assert kinds == {
        "model.layers": "IntDistribution",
        "model.dropout": "FloatDistribution",
        "train.learning_rate": "FloatDistribution",
    }
    own = space.params(with_values(config, {"model.dropout": 0.5}))
    assert own == {"model.layers": 2, "model.dropout": 0.5, "train.learning_rate": 0.002}
    assert space.params(with_values(config, {"train.learning_rate": 0.1})) is None
