"""From a Parquet log to a tracked run, a verified bundle and a scored file, as a user does it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipelines import train
from recsys.config import parse_config
from recsys.data.synthetic import PlantedLog, write_log
from recsys.training.metrics import auc

CLI = [sys.executable, "-m", "pipelines.cli"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> PlantedLog:
    return write_log(tmp_path_factory.mktemp("log"), rows=3000, eval_rows=800, seed=1)


def tree(log: PlantedLog, **changes: Any) -> dict[str, Any]:
    return {
        "name": "tiny",
        "seed": 3,
        "data": {
            "train": str(log.train),
            "valid": str(log.valid),
            "test": str(log.test),
            "label": "label",
            "group": "user",
        },
        "features": {
            "price": {"type": "numeric", "transform": "log1p", "normalise": "standard"},
            "site": {"type": "categorical"},
            "device": {"type": "categorical", "encoding": "hash", "buckets": 50},
            "item": {"type": "categorical"},
            "tags": {"type": "bag", "pooling": "mean"},
            "history": {"type": "sequence", "shares": "item", "max_length": 5},
        },
        "embedding": {"method": "unified", "embedding_dim": 8, "lookups": 2, "budget": 0.5},
        "model": {"name": "deepfm", "hidden_units": [16]},
        "train": {"batch_size": 256, "max_epochs": 3, "learning_rate": 0.01, "patience": 3},
        "tracking": {"uri": None},
        **changes,
    }


def config(folder: Path, log: PlantedLog, **changes: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree(log, **changes)))
    return path


def recsys(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_train_score_evaluate_agree(tmp_path: Path, log: PlantedLog) -> None:
    done = recsys(tmp_path, "train", config(tmp_path, log), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["metrics"]) == {"valid", "test"}
    assert result["memory"]["lookups_per_row"] > 0
    assert result["verified"]["max_abs_diff"] <= 1e-6

    scored = tmp_path / "scored.parquet"
    done = recsys(tmp_path, "score", result["bundle"], log.test, scored, "--keep", "label,user")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(scored)
    assert table.column_names == ["label", "user", "score"]
    assert table["user"].equals(pq.read_table(log.test)["user"])
    value = auc(table["label"].to_numpy(), table["score"].to_numpy())
    assert value == pytest.approx(result["metrics"]["test"]["auc"], abs=1e-6)

    done = recsys(
        tmp_path, "evaluate", result["bundle"], "--json", "--slice", "device", "--slice", "site"
    )
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    for key, expected in result["metrics"]["test"].items():
        assert again["metrics"]["test"][key] == pytest.approx(expected, abs=1e-6)
    assert sum(row["rows"] for row in again["slices"]["device"]) == 800

    copy = tmp_path / "copy"
    done = recsys(tmp_path, "export", result["bundle"], copy)
    assert done.returncode == 0, done.stderr
    done = recsys(tmp_path, "score", copy, log.test, tmp_path / "again.parquet")
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "again.parquet")["score"].equals(table["score"])


def test_torchrec_store_trains_resumably_and_exports(tmp_path: Path, log: PlantedLog) -> None:
    pytest.importorskip("torchrec")
    train = {
        "batch_size": 256,
        "max_epochs": 2,
        "learning_rate": 0.01,
        "store": "torchrec",
        "embedding_optimizer": "rowwise_adagrad",
        "embedding_learning_rate": 0.05,
        "checkpoint_steps": 3,
    }
    embedding = {"method": "full", "embedding_dim": 8}
    done = recsys(
        tmp_path, "train", config(tmp_path, log, train=train, embedding=embedding), "--json"
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("epoch") for line in done.stderr.splitlines()), done.stderr
    result = json.loads(done.stdout)
    assert result["metrics"]["test"]["auc"] > 0.5
    assert result["verified"]["max_abs_diff"] <= 1e-6


def test_numbers_alone_train_and_export(tmp_path: Path, log: PlantedLog) -> None:
    changed = tree(log, features={"price": {"type": "numeric", "transform": "log1p"}})
    changed["embedding"] = {"method": "full", "embedding_dim": 8}
    result = train.run(parse_config(changed), out=tmp_path)
    assert result["memory"]["lookups_per_row"] == 0
    assert 0.4 < result["metrics"]["test"]["auc"] < 1


def test_two_runs_are_equal(tmp_path: Path, log: PlantedLog) -> None:
    path = config(tmp_path, log)
    results = []
    for name in ("first", "second"):
        done = recsys(tmp_path, "train", path, "--json", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout)["metrics"])
    assert results[0] == results[1]


INTERRUPTED = """
import os, signal
from pipelines import cli
from recsys.training.trainer import Trainer

after_step = Trainer._after_step

def interrupt(self, *args):
    if self._at.total_steps == 60:
        os.kill(os.getpid(), signal.SIGINT)
    after_step(self, *args)

Trainer._after_step = interrupt
cli.main()
"""
"""The command line, interrupted in its second epoch."""


def test_interrupted_run_continues_to_the_same_result(tmp_path: Path, log: PlantedLog) -> None:
    """SIGINT saves and exits with 130; the same command goes on, and ends where it would have."""
    train = {"batch_size": 64, "max_epochs": 6, "learning_rate": 0.01, "patience": 6}
    path = config(tmp_path, log, train=train)
    whole = recsys(tmp_path, "train", path, "--json", "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr

    words = ["train", str(path), "--json", "--out", str(tmp_path / "parts")]
    stopped = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert stopped.returncode == 130, stopped.stderr
    assert "the same command continues" in stopped.stderr
    assert list((tmp_path / "parts").glob("tiny-*/checkpoint/step-*"))

    parts = recsys(tmp_path, *words)
    assert parts.returncode == 0, parts.stderr
    assert "resuming" in parts.stderr
    assert json.loads(parts.stdout)["metrics"] == json.loads(whole.stdout)["metrics"]
    assert not list((tmp_path / "parts").glob("tiny-*/checkpoint"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "deepmf"}}, "did you mean 'deepfm'?"),
        ({"features": {"prise": {"type": "numeric"}}}, "prise"),
        ({"features": {"price": {"type": "categorical"}}}, "price"),
        ({"embedding": {"method": "unified", "embedding_dim": 8, "budget": "10B"}}, "10B"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, log: PlantedLog, change: dict[str, Any], message: str
) -> None:
    done = recsys(tmp_path, "train", config(tmp_path, log, **change))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("recsys: ")
    assert message in lines[-1]
    assert "Traceback" not in done.stderr


def test_bad_label_names_file_and_value(tmp_path: Path, log: PlantedLog) -> None:
    table = pq.read_table(log.train)
    label = table["label"].to_numpy().copy()
    label[1234] = 7
    place = table.schema.get_field_index("label")
    pq.write_table(table.set_column(place, "label", pa.array(label)), tmp_path / "bad.parquet")
    data = {**tree(log)["data"], "train": "bad.parquet"}
    done = recsys(tmp_path, "train", config(tmp_path, log, data=data))
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "bad.parquet" in last
    assert "label" in last
    assert "7" in last


def test_models_embeddings_and_schema_are_printed(tmp_path: Path, log: PlantedLog) -> None:
    assert "autoint" in recsys(tmp_path, "models").stdout
    assert "mixed_dim" in recsys(tmp_path, "embeddings").stdout
    assert json.loads(recsys(tmp_path, "config", "schema").stdout)["properties"]
    shown = yaml.safe_load(recsys(tmp_path, "config", "show", config(tmp_path, log)).stdout)
    assert shown["train"]["max_epochs"] == 3
    assert shown["train"]["clip_norm"] is None


def test_trained_model_beats_chance_by_a_margin(tmp_path: Path, log: PlantedLog) -> None:
    """Learns at all: clearly above .5 on rows it has not seen, though the log is small."""
    from pipelines import train
    from recsys.config import parse_config

    result = train.run(parse_config(tree(log)), out=tmp_path)
    assert result["metrics"]["test"]["auc"] > 0.55
    assert np.isfinite(result["metrics"]["test"]["logloss"])
