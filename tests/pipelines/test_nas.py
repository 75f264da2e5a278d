"""`recsys nas`: from a log to complete configs of networks that train from scratch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from planted_xor import Recsys, is_png, log, printed, tree

from pipelines import nas, train
from recsys.config import load_config, parse_config
from recsys.types import InputError

SMALL = (
    "--batch-size",
    250,
    "--blocks",
    2,
    "--epochs",
    2,
    "--population",
    4,
    "--generations",
    2,
    "--top",
    2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("nas")
    for seed, (name, rows) in enumerate({"train": 3000, "valid": 800}.items()):
        pq.write_table(log(rows, seed), made / f"{name}.parquet")
    return made


def test_search_writes_configs_that_train(folder: Path, recsys: Recsys) -> None:
    uri = f"sqlite:///{folder}/mlflow.db"
    changes: dict[str, Any] = {
        "model": {"name": "nasrec"},
        "tracking": {"uri": uri, "experiment": "nas", "register_model": False},
    }
    (folder / "xor.yaml").write_text(yaml.safe_dump(tree(folder, **changes)))
    out = folder / "runs"
    code, stdout, stderr = recsys("nas", folder / "xor.yaml", *SMALL, "--out", out, "--json")
    assert code == 0, stderr
    assert "Warning" not in stderr
    result = json.loads(stdout)
    assert result["networks"] == 4 + 8
    losses = [row["logloss"] for row in result["found"]]
    assert len(losses) == 2
    assert losses == sorted(losses)
    assert not (Path(result["folder"]) / "checkpoint").exists()
    best = load_config(result["found"][0]["config"])
    assert best.name == "xor-1"
    assert best.train == load_config(folder / "xor.yaml").train  # and nothing of the search
    trained = train.run(best, out=folder / "trained")
    assert trained["metrics"]["valid"]["auc"] > 0.9
    tables = trained["memory"]["trainable_params"]
    assert trained["parameters"] - tables == result["found"][0]["parameters"]
    shown = printed(nas.render(result))
    assert "xor_1.yaml" in shown
    assert "1: " in shown
    assert f"recsys benchmark {result['folder']}/*.yaml" in " ".join(shown.split())
    (picture,) = folder.rglob("search.png")
    assert is_png(picture)


def test_another_search_has_another_folder_and_the_same_search_the_same_result(
    folder: Path, tmp_path: Path
) -> None:
    config = parse_config(tree(folder, model={"name": "nasrec"}))
    search = nas.Search(blocks=1, epochs=1, batch_size=250, population=3, generations=1, top=1)
    one, again = (nas.run(config, search, out=tmp_path / name) for name in ("a", "b"))
    assert one["found"][0]["logloss"] == again["found"][0]["logloss"]
    assert one["found"][0]["blocks"] == again["found"][0]["blocks"]
    other = nas.Search(blocks=1, epochs=1, batch_size=250, population=4, generations=1, top=1)
    elsewhere = nas.run(config, other, out=tmp_path / "a")
    assert elsewhere["folder"] != one["folder"]
    assert Path(one["found"][0]["config"]).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "not of autoint; set model: {name: nasrec}"),
        (
            {"model": {"name": "nasrec"}, "selection": {"method": "magnitude", "keep": 0.5}},
            "remove selection",
        ),
        (
            {"model": {"name": "nasrec"}, "train": {"warm_start": "bundle"}},
            "remove train.warm_start",
        ),
    ],
)
def test_what_cannot_be_searched(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nas.run(parse_config(tree(folder, **changes)), nas.Search())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"space": "large"}, "--space 'large': must be small or full"),
        ({"population": 0}, "--population 0: must be at least 1"),
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"share": 1.0}, "--share 1.0: must be between 0 and 1"),
    ],
)
def test_settings_that_cannot_be(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nas.Search(**keys)
