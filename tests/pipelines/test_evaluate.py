"""`recsys evaluate` and a log that has changed since training."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import cli, evaluate, export, train
from recsys.config import parse_config
from recsys.types import InputError
from serving.bundle import file_digest


def write(path: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": rng.permutation(rows) + 1000 * seed, "label": rng.integers(0, 2, rows)}
    pq.write_table(pa.table(columns), path)


def test_a_split_of_another_log_is_no_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that come before the others shift the draw of a random split: what is test then was
    trained on, and ids of one row each would seem to be learned."""
    write(tmp_path / "a" / "log" / "day2.parquet", 600, 2)
    tree = {
        "name": "changed",
        "data": {"source": "log", "label": "label", "split": {"method": "random"}},
        "features": {"id": {"type": "categorical"}},
        "embedding": {"method": "full", "embedding_dim": 2},
        "model": {"name": "lr"},
        "train": {"batch_size": 100, "max_epochs": 2},
        "tracking": {"uri": None},
    }
    result = train.run(parse_config(tree), root=str(tmp_path / "a"), out=tmp_path / "runs")
    bundle = Path(result["bundle"])
    shutil.copytree(tmp_path / "a", tmp_path / "copy", copy_function=shutil.copyfile)
    for root in ("a", "copy"):
        found = evaluate.run(bundle, root=str(tmp_path / root))
        assert found["metrics"]["test"] == result["metrics"]["test"]
    again = tmp_path / "again"
    export.run(bundle, again, root=str(tmp_path / "a"))
    digest = file_digest(again / "manifest.json")
    with pytest.raises(InputError, match=r"again exists; give a folder of another name"):
        export.run(bundle, again, root=str(tmp_path / "a"))
    assert file_digest(again / "manifest.json") == digest
    monkeypatch.setattr(sys, "argv", ["recsys", "evaluate", str(bundle), str(again)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "are 2 bundles; name one" in capsys.readouterr().err
    write(tmp_path / "a" / "log" / "day1.parquet", 7, 1)
    for folder in (bundle, again):
        with pytest.raises(InputError, match=r"--split test: the log in .* has changed since"):
            evaluate.run(folder, root=str(tmp_path / "a"))
    new = [str(tmp_path / "a" / "log" / "day1.parquet")]
    assert evaluate.run(bundle, data=new)["metrics"]["data"]["rows"] == 7
