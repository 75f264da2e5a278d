"""Budgets on one screen without training, and the Pareto of trained methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from planted_xor import Recsys

from pipelines import compress, embeddings, grid
from recsys.config import RunConfig, parse_config
from recsys.data.planted_ids import write_id_log
from recsys.embeddings import EMBEDDINGS
from recsys.types import InputError

HASH = "hash:exact_below=16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ids")
    write_id_log(path, rows=6_000, eval_rows=1_500, shrink=400)
    return path


def config(folder: Path, **changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "name": "ids",
        "seed": 3,
        "data": {part: str(folder / f"{part}.parquet") for part in ("train", "valid", "test")},
        "features": {name: {"type": "categorical"} for name in ("big_2", "mid_0", "small")},
        "embedding": {"method": "full", "embedding_dim": 8},
        "model": {"name": "fm"},
        "train": {"batch_size": 512, "max_epochs": 1, "learning_rate": 0.02},
        "tracking": {"uri": None},
    }
    tree["data"]["label"] = "label"
    parsed = parse_config(tree | changes)
    assert isinstance(parsed, RunConfig)
    return parsed


def test_every_method_meets_a_budget_or_names_its_floor(folder: Path, tmp_path: Path) -> None:
    deepfm = config(folder, model={"name": "deepfm", "hidden_units": [8]})
    result = embeddings.run(deepfm, budgets=[0.5, "6KB"], cache=tmp_path)
    assert [row["method"] for row in result["rows"]] == [*EMBEDDINGS, *EMBEDDINGS]
    for row in result["rows"]:
        if row["feasible"]:
            assert row["stored_bytes"] <= row["budget_bytes"]
            assert row["solution"]
        else:
            assert "needs at least" in row["reason"]
    half = {row["method"]: row for row in result["rows"][: len(EMBEDDINGS)]}
    assert not any(half["full"]["collisions"].values())
    assert half["hash"]["collisions"]["big_2"] > 0.3 > half["unified"]["collisions"]["big_2"]


def test_all_methods_start_alike(folder: Path) -> None:
    own = {"method": "hash", "embedding_dim": 8, "init_std": 0.02, "exact_below": 16}
    run = config(folder, embedding=own)
    for method in EMBEDDINGS:
        table = embeddings.table_config(run, method, 0.5)
        assert (table.init_std, table.embedding_dim, table.budget) == (0.02, 8, 0.5)
    assert embeddings.table_config(run, "hash", 0.5).exact_below == 16  # type: ignore[attr-defined]
    assert embeddings.table_config(run, "robe:init_std=0.3", 0.5).init_std == 0.3
    assert embeddings.table_config(run, "mixed_dim", 0.5).init == "orthonormal"  # type: ignore[attr-defined]
    xavier = embeddings.table_config(run, "mixed_dim:init=xavier", 0.5)
    assert xavier.init == "xavier"  # type: ignore[attr-defined]


def test_collisions_are_counted(folder: Path, tmp_path: Path) -> None:
    """Against the definition, for one feature of a hash table."""
    run = config(folder)
    found = embeddings.run(run, budgets=[0.3], methods=["hash"], cache=tmp_path)["rows"][0]
    features = embeddings.fitted(
        run, root=".", cache=tmp_path, reporter=embeddings.SilentReporter()
    )
    place = [field.name for field in features.fields].index("mid_0")
    field = features.fields[place]
    _, plan = embeddings.solve(run, features, "hash", 0.3)
    rows = plan.row_map()(torch.arange(field.num_ids).unsqueeze(-1), place)[:, 0].tolist()
    assert field.counts is not None
    met = sum(n for row, n in zip(rows, field.counts, strict=True) if rows.count(row) > 1)
    assert found["collisions"]["mid_0"] == pytest.approx(met / field.counts.sum())


def test_the_pareto_is_trained_resumed_and_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, picture = tmp_path / "pareto.md", tmp_path / "pareto.png"
    options: dict[str, Any] = {
        "budgets": [0.5, 0.05],
        "methods": ["full", HASH],
        "selections": ["magnitude"],
        "out": tmp_path / "runs",
        "bayes": 0.8,
    }
    result = compress.run(config(folder), report=report, picture=picture, **options)
    points = {(row["method"], row["budget"]): row for row in result["rows"]}
    assert {method for method, _ in points} == {"full", HASH, "magnitude"}
    assert [(r["method"], r["budget"]) for r in result["infeasible"]] == [("full", 0.05)]
    assert points[HASH, 0.05]["stored_bytes"] < 0.2 * points[HASH, 0.5]["stored_bytes"]
    assert picture.read_bytes()[:4] == b"\x89PNG"
    text = report.read_text()
    assert "| 0.5 | `magnitude` | 1 |" in text
    assert "best possible AUC is 0.80000" in text
    assert "- at 0.05: `full` needs " in text

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(grid.train, "run", forbidden)
    again = compress.run(config(folder), **options)
    assert [row["auc"] for row in again["rows"]] == [row["auc"] for row in result["rows"]]
    assert np.ptp([row["auc"] for row in result["rows"]]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["ful"], "budgets": [0.5]}, "--methods ful: no such method"),
        ({"methods": [], "selections": ["optfs"], "budgets": [0.5]}, "keeps no given share"),
        ({"methods": ["full"], "budgets": ["1KB"]}, "no method can meet any"),
        ({"methods": ["hash:exact=1"], "budgets": [0.5]}, "no method can meet any"),
    ],
)
def test_what_cannot_be_done_says_so(
    folder: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compress.run(config(folder), out=tmp_path, **options)


def test_the_command_line_prints_both(folder: Path, tmp_path: Path, recsys: Recsys) -> None:
    path = tmp_path / "ids.yaml"
    path.write_text(yaml.safe_dump(config(folder).model_dump(mode="json", exclude_unset=True)))
    code, out, err = recsys("embeddings", path, "--budget", "0.5", "--methods", "hash", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert row["method"] == "hash"
    code, out, err = recsys(
        "compress", path, "--budgets", "0.5", "--methods", "hash", "--json", "--out", tmp_path
    )
    assert code == 0, err
    assert json.loads(out)["rows"][0]["budget"] == 0.5
    for words, said in (
        ([path, "--budget", "2"], "a share lies in (0, 1]"),
        (["--budget", "0.5"], "these options need a CONFIG"),
        ([path, "--auto", "--methods", "hash"], "--auto chooses among all"),
    ):
        code, _, err = recsys("embeddings", *words)
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert said in err
