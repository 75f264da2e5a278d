"""Fixtures of more than one file here: what they train is trained once."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from planted_xor import Recsys, Trained, log, tree

from pipelines import cli, train
from recsys.config import parse_config


@pytest.fixture(scope="session")
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
