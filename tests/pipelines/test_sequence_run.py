"""A run of a sequence model from a log of interactions to a bundle, as a user does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from mlflow import MlflowClient
from planted_xor import Recsys

from pipelines import train
from pipelines.prepare import prepare_sequences
from recsys.config import SequenceRunConfig, parse_config
from recsys.training.checkpoint import load_checkpoint
from recsys.training.progress import SilentReporter
from recsys.training.trainer import Interrupted, Trainer
from recsys.types import InputError
from serving.topk import TopK

ITEMS = 12


def write_log(path: Path, users: int = 120) -> None:
    """Everybody walks round a circle of items from a place of their own, some longer than others:
    the next item is certain."""
    rng = np.random.default_rng(0)
    steps = rng.integers(3, 15, users)
    start = np.repeat(rng.integers(0, ITEMS, users), steps)
    at = np.concatenate([np.arange(n) for n in steps])
    log = {
        "who": np.repeat(np.arange(users), steps),
        "film": [f"film {n}" for n in (start + at) % ITEMS],
        "at": at,
    }
    pq.write_table(pa.table(log), path)


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "circle",
        "seed": 1,
        "data": {
            "source": str(folder / "log.parquet"),
            "user": "who",
            "item": "film",
            "timestamp": "at",
            "split": {"method": "leave_one_out"},
        },
        "features": {"history": {"type": "sequence", "max_length": 6}},
        "embedding": {"method": "full", "embedding_dim": 16, "init_std": 0.05},
        "model": {"name": "sasrec", "layers": 1, "dropout": 0.0},
        "train": {"batch_size": 32, "max_epochs": 5, "learning_rate": 0.01},
        "ranking": {"cutoffs": [1, 10], "filter_seen": False, "sampled": ["uniform"]},
        "tracking": {
            "uri": f"sqlite:///{folder}/mlflow.db",
            "experiment": "circle",
            "register_model": False,
        },
        **changes,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("circle")
    write_log(folder / "log.parquet")
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return train.run(parse_config(tree(folder)), out=folder / "runs")


def test_the_result_has_the_keys_of_every_run(result: dict[str, Any]) -> None:
    clicks = {"run_id", "bundle", "metrics", "memory", "parameters", "epochs", "steps"}
    assert set(result) == clicks | {"rows_per_second", "verified", "seconds"}
    assert json.loads(json.dumps(result)) == result
    assert set(result["metrics"]) == {"valid", "test"}
    named = {"recall@1", "recall@10", "ndcg@1", "ndcg@10", "mrr", "rows"}
    assert named <= set(result["metrics"]["test"])
    assert "sampled_uniform/ndcg@10" in result["metrics"]["test"]
    assert result["memory"]["lookups_per_row"] == 6


def test_the_circle_is_learned(result: dict[str, Any]) -> None:
    assert result["metrics"]["test"]["recall@1"] > 0.9
    assert result["metrics"]["valid"]["ndcg@10"] > 0.95


def test_everything_is_tracked(folder: Path, result: dict[str, Any]) -> None:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.get_run(result["run_id"])
    assert run.data.params["ranking.cutoffs"] == "[1, 10]"
    assert run.data.params["model.name"] == run.data.tags["model"] == "sasrec"
    assert run.data.metrics["final/test/ndcg_at_10"] == result["metrics"]["test"]["ndcg@10"]
    curve = client.get_metric_history(result["run_id"], "valid/ndcg_at_10")
    assert len(curve) == 5
    for place, names in {
        "plots": {"plots/curves.png", "plots/valid", "plots/test"},
        "plots/test": {"plots/test/cutoffs.png", "plots/test/popularity.png"},
    }.items():
        assert {f.path for f in client.list_artifacts(result["run_id"], place)} == names
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"train", "valid", "test"}


def test_the_tracked_model_recommends(folder: Path, result: dict[str, Any]) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    experiment = mlflow.get_experiment_by_name("circle")
    (model,) = mlflow.search_logged_models([experiment.experiment_id], output_format="list")
    loaded = mlflow.pyfunc.load_model(model.model_uri)
    import pandas as pd

    found = loaded.predict(pd.DataFrame({"history": [["film 3", "film 4"], ["film 11"]]}))
    assert [items[0] for items in found["items"]] == ["film 5", "film 0"]
    assert [len(scores) for scores in found["scores"]] == [10, 10]


def test_the_command_line_does_all_with_the_bundle(
    folder: Path, result: dict[str, Any], recsys: Recsys
) -> None:
    code, out, err = recsys("evaluate", result["bundle"], "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["test"] == pytest.approx(result["metrics"]["test"], abs=1e-9)

    rows = pa.table(
        {"who": [7, 8], "history": [["film 1", "film 2"], []], "target": ["film 3"] * 2}
    )
    pq.write_table(rows, "rows.parquet")
    code, out, err = recsys("evaluate", result["bundle"], "--data", "rows.parquet", "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"]["data"]["recall@1"] >= 0.5
    code, _, err = recsys("score", result["bundle"], "rows.parquet", "out.parquet", "--keep", "who")
    assert code == 0, err
    scored = pq.read_table("out.parquet")
    assert scored.column_names == ["who", "items", "scores"]
    assert [len(items) for items in scored["items"].to_pylist()] == [10, 10]
    assert scored["items"].to_pylist()[0][0] == "film 3"
    code, _, err = recsys("score", result["bundle"], "rows.parquet", "out.parquet", "--k", 3)
    assert code == 0, err
    assert [len(items) for items in pq.read_table("out.parquet")["items"].to_pylist()] == [3, 3]

    code, _, err = recsys("export", result["bundle"], "copy")
    assert code == 0, err
    again = TopK("copy").recommend(rows.select(["history"]))
    assert again.items.to_pylist() == scored["items"].to_pylist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "BUNDLE", "--split", "train"], "must be valid or test"),
        (["evaluate", "BUNDLE", "--slice", "who"], "slices are of click models"),
        (["evaluate", "BUNDLE", "--data", "DATA"], "'history'"),
        (["explain", "BUNDLE", "DATA"], "model sasrec recommends items"),
        (["importance", "BUNDLE", "DATA"], "model sasrec recommends items"),
        (["compare", "circle", "--uri", "STORE"], "ranks items and has no scores of rows"),
        (["benchmark", "CONFIG", "clicks.yaml"], "run ranks items and clicks scores clicks"),
    ],
)
def test_what_is_for_models_of_clicks_says_so_in_one_line(
    folder: Path, result: dict[str, Any], recsys: Recsys, words: list[str], message: str
) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(tree(folder)))
    clicks = {"data": {"train": "t.parquet", "test": "t.parquet", "label": "y"}}
    clicks |= {"features": {"x": {"type": "numeric"}}, "model": {"name": "lr"}, "ranking": None}
    whole = {k: v for k, v in {**tree(folder), **clicks}.items() if v is not None}
    whole["train"] = {"max_epochs": 1}
    Path("clicks.yaml").write_text(yaml.safe_dump(whole))
    values = {
        "BUNDLE": result["bundle"],
        "DATA": folder / "log.parquet",
        "STORE": f"sqlite:///{folder}/mlflow.db",
        "CONFIG": "run.yaml",
    }
    code, _, err = recsys(*(values.get(word, word) for word in words))
    assert code == 2
    assert message in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_a_budget_that_the_heads_cannot_share_is_refused(folder: Path, tmp_path: Path) -> None:
    embedding = {"method": "full", "embedding_dim": 16, "budget": 0.6}
    model = {"name": "sasrec", "heads": 2}
    config = parse_config(tree(folder, embedding=embedding, model=model))
    assert isinstance(config, SequenceRunConfig)
    with pytest.raises(InputError, match=r"model\.heads 2 must divide .* makes 9; give another"):
        prepare_sequences(config, root=".", cache=tmp_path, reporter=SilentReporter())


def test_a_benchmark_of_rankings_has_their_columns(folder: Path, recsys: Recsys) -> None:
    whole = tree(folder, tracking={"uri": None})
    Path("circle.yaml").write_text(yaml.safe_dump(whole))
    Path("published.yaml").write_text("circle: {ndcg@10: 0.5, source: a paper}\nlr: {auc: 0.7}\n")
    code, out, err = recsys(
        *("benchmark", "circle.yaml", "--seeds", 2, "--published", "published.yaml"),
        *("--set", "train.max_epochs=1", "--report", "table.md", "--json"),
    )
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert row["seeds"] == [1, 2]
    assert row["ndcg@10"] == pytest.approx(np.mean(row["ndcg@10_values"]))
    assert len(set(row["ndcg@10_values"])) == 2
    table = Path("table.md").read_text()
    assert "| config | seeds | test NDCG@10 | published | difference | Recall@10 |" in table
    assert f"| 0.5000 | {row['ndcg@10'] - 0.5:+.4f} |" in table


def test_a_quantised_bundle_is_smaller_and_says_what_it_cost(folder: Path, recsys: Recsys) -> None:
    changes = {"tracking": {"uri": None}, "export": {"quantise": "int8"}, "name": "small-circle"}
    done = train.run(parse_config(tree(folder, **changes)), root=str(folder), out=folder / "int8")
    said = done["quantised"]
    assert said["kind"] == "int8"
    assert done["memory"]["stored_bytes"] == said["stored_bytes"]["after"]
    assert said["stored_bytes"]["after"] < 0.5 * said["stored_bytes"]["before"]
    assert abs(said["ndcg@10"]["test"]["after"] - said["ndcg@10"]["test"]["before"]) < 0.01
    code, out, _ = recsys("evaluate", done["bundle"], "--data-root", str(folder), "--json")
    assert code == 0
    assert json.loads(out)["metrics"]["test"]["ndcg@10"] == pytest.approx(
        said["ndcg@10"]["test"]["after"]
    )


def test_a_bundle_of_floats_is_quantised_afterwards(folder: Path, recsys: Recsys) -> None:
    changes = {"tracking": {"uri": None}, "name": "later-circle"}
    done = train.run(parse_config(tree(folder, **changes)), root=str(folder), out=folder / "later")
    small = str(folder / "later" / "int4")
    options = ["--data-root", str(folder), "--quantise", "int4"]
    code, out, _ = recsys("export", done["bundle"], small, *options, "--json")
    assert code == 0
    said = json.loads(out)["quantised"]
    assert said["stored_bytes"]["before"] == done["memory"]["stored_bytes"]
    assert said["stored_bytes"]["after"] < 0.5 * said["stored_bytes"]["before"]
    assert said["ndcg@10"]["test"]["before"] == done["metrics"]["test"]["ndcg@10"]
    code, out, _ = recsys("evaluate", small, "--data-root", str(folder), "--json")
    assert code == 0
    result = json.loads(out)
    assert result["metrics"]["test"]["ndcg@10"] == pytest.approx(said["ndcg@10"]["test"]["after"])
    assert result["memory"]["stored_bytes"] == said["stored_bytes"]["after"]
    code, _, error = recsys("export", small, str(folder / "later" / "again"), *options)
    assert code == 2
    assert "are int4 already" in error


def test_schema_and_show_know_both_kinds(folder: Path, recsys: Recsys) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(tree(folder)))
    code, out, _ = recsys("config", "show", "run.yaml")
    assert code == 0
    assert yaml.safe_load(out)["ranking"]["cutoffs"] == [1, 10]
    code, out, _ = recsys("config", "schema", "--sequences")
    assert "ranking" in json.loads(out)["properties"]
    code, out, _ = recsys("config", "schema")
    assert "selection" in json.loads(out)["properties"]


class StopsAt(Trainer):
    """Asks itself to stop before a step, as a signal would."""

    stop_at: int

    def _after_step(self, loss: float, bar: Any, rows: int) -> None:
        self._stop.asked = self._at.total_steps + 1 == self.stop_at
        super()._after_step(loss, bar, rows)


@pytest.mark.parametrize("stop", [1, 5, 13])
@pytest.mark.parametrize(
    "model",
    [
        {"name": "bert4rec", "layers": 1, "hidden_units": 16, "dropout": 0.2},
        {"name": "sasrec", "layers": 1, "loss": "gbce", "negatives": 4, "dropout": 0.2},
    ],
    ids=["bert4rec", "gsasrec"],
)
def test_k_steps_a_stop_and_the_rest_are_all_steps_bit_for_bit(
    folder: Path, tmp_path: Path, model: dict[str, Any], stop: int
) -> None:
    """Random masks, negatives and dropout among them."""
    train_keys = {"batch_size": 32, "max_epochs": 4, "learning_rate": 0.01, "patience": 4}
    config = parse_config(tree(folder, model=model, train=train_keys))
    assert isinstance(config, SequenceRunConfig)

    def trained(kind: type[Trainer], out: Path) -> tuple[Trainer, Any]:
        prepared = prepare_sequences(
            config, root=".", cache=folder / "cache", reporter=SilentReporter()
        )
        task = train.RankingTask(config, prepared)
        loop = kind(
            model=task.assembly.model,
            config=config.train,
            seed=config.seed,
            fingerprint=config.fingerprint,
            evaluate=task.evaluate,
            out=out,
        )
        torch.manual_seed(5)
        return loop, prepared

    whole, prepared = trained(Trainer, tmp_path / "whole")
    expected = whole.fit(prepared.train, prepared.valid)
    assert expected.steps > 13

    first, prepared = trained(StopsAt, tmp_path / "parts")
    first.stop_at = stop  # type: ignore[attr-defined]
    with pytest.raises(Interrupted):
        first.fit(prepared.train, prepared.valid)
    saved = load_checkpoint(tmp_path / "parts")
    assert saved is not None
    assert saved.state["position"]["total_steps"] == stop

    torch.manual_seed(77)  # another process starts with another state
    second, prepared = trained(Trainer, tmp_path / "parts")
    found = second.fit(prepared.train, prepared.valid)
    assert found.phases == expected.phases
    weights = whole.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in second.model.state_dict().items())
