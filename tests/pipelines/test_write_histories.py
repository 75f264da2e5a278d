"""From a log of interactions to a verified DIN bundle, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.train import run as train
from recsys.config import parse_config
from serving.scorer import Scorer


def write_log(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, rows, first in (("train", 400, 0), ("valid", 80, 400), ("test", 80, 480)):
        columns = {
            "user": rng.integers(0, 20, rows),
            "item": rng.integers(0, 30, rows),
            "time": first + rng.permutation(rows),
            "label": rng.integers(0, 2, rows).astype(np.int8),
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    genres = [f"g{i % 4}" for i in range(30)]
    pq.write_table(pa.table({"item": range(30), "genre": genres}), folder / "items.parquet")


def test_log_to_histories_to_bundle(tmp_path: Path) -> None:
    write_log(tmp_path)
    out = tmp_path / "with-histories"
    options: list[str] = ["histories", "--data-root", str(tmp_path), "--out", str(out), "--json"]
    for split in ("train", "valid", "test"):
        options += [f"--{split}", f"{split}.parquet"]
    options += ["--user", "user", "--item", "item", "--time", "time", "--items", "items.parquet"]
    options += ["--attribute", "genre", "--history", "liked: label = 1", "--length", "7"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout.splitlines()[-1])
    assert written["rows"] == {"train": 400, "valid": 80, "test": 80}
    features: dict[str, Any] = {
        "user": {"type": "categorical"},
        "item": {"type": "categorical"},
        "genre": {"type": "categorical"},
        "liked": {"type": "sequence", "shares": "item", "max_length": 5},
        "liked_genre": {"type": "sequence", "shares": "genre", "max_length": 5},
    }
    pair = {"candidate": ["item", "genre"], "sequence": ["liked", "liked_genre"]}
    tree = {
        "name": "tiny-din",
        "data": {**written["out"], "label": "label", "group": "user"},
        "features": features,
        "embedding": {"method": "full", "embedding_dim": 4},
        "model": {"name": "din", "histories": [pair], "hidden_units": [8], "attention_units": [4]},
        "train": {
            "batch_size": 64,
            "max_epochs": 1,
            "embedding_l2": {"value": 0.1, "mode": "batch_aware"},
            "monitor": "gauc",
        },
        "tracking": {"uri": None},
    }
    trained = train(parse_config(tree), out=tmp_path / "runs")
    assert trained["verified"]["max_abs_diff"] <= 1e-6
    assert 0 < trained["metrics"]["test"]["gauc"] < 1
    rows = pq.read_table(out / "test.parquet").to_pylist()[:4]
    scores = Scorer(Path(trained["bundle"])).predict(rows)
    assert scores.shape == (4,)
    for row in rows:  # a request without the genres of its history is one with an empty history
        row["liked_genre"] = None
    without = Scorer(Path(trained["bundle"])).predict(rows)
    for row in rows:
        row["liked"] = None
    assert without == pytest.approx(Scorer(Path(trained["bundle"])).predict(rows), abs=1e-6)
