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
from pipelines.tune_space import Range, Space, with_values
from recsys.config import load_config, parse_config
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
    assert left >= {"xor_tuned.yaml", "trial-0013.json"}
    assert "trial-0013" not in left  # checkpoints


def test_trials_behind_the_median_are_cut(folder: Path, searched: dict[str, Any]) -> None:
    cut = [record for record in searched["trials"] if record["state"] == "cut"]
    assert cut
    for record in cut:
        epochs = len(record["by_epoch"])
        assert 2 <= epochs <= 4
        before = searched["trials"][: record["trial"]]
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
        """Stops trial 12, which is chosen by what the others found, in its second epoch."""

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
        assert record["value"] == result["trials"][record["same_as"]]["value"]
    shown = printed(tune.render(result))
    assert "failed: model.heads=" in shown
    assert f"recsys train {result['best']['config']}" in " ".join(shown.split())


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


def test_whole_ends_give_whole_numbers_and_others_do_not(folder: Path) -> None:
    config = parse_config(small(folder))
    space = Space(
        {
            "model.layers": Range(low=1, high=4, log=True),
            "model.dropout": Range(low=0, high=0.5),
            "train.learning_rate": Range(low="1e-4", high="1e-2", log=True),  # as YAML reads 1e-4
        }
    )
    kinds = {key: type(d).__name__ for key, d in space.distributions().items()}
    assert kinds == {
        "model.layers": "IntDistribution",
        "model.dropout": "FloatDistribution",
        "train.learning_rate": "FloatDistribution",
    }
    assert space.params(config) == {
        "model.layers": 2,
        "model.dropout": config.model.dropout,
        "train.learning_rate": 0.002,
    }
    outside = with_values(config, {"train.learning_rate": 0.1})
    assert space.params(outside) is None
