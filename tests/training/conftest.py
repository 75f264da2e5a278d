"""One recorded run for all tests of this folder: a fresh sqlite store costs seconds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, List

import pytest
import torch
from torch import Tensor, nn

from recsys.training.tracking import open_client

REPO = Path(__file__).parents[2]


class TinyGraph(nn.Module):
    """Scores that show every input arrived: a function of one id, one float and a list's length."""

    def forward(self, ids: Tensor, floats: Tensor, lists: List[Tensor], lengths: Tensor) -> Tensor:
        price = torch.nan_to_num(floats[:, 0], nan=-1.0)
        known = (ids[:, 1] != -(2**63)).to(torch.float64)
        return torch.sigmoid(price + known + lengths[:, 0].to(torch.float64)).to(torch.float32)


INPUTS = [
    {"name": "user", "column": "user", "kind": "id", "dtype": "text", "max_length": None},
    {"name": "item", "column": "item", "kind": "id", "dtype": "int", "max_length": None},
    {"name": "price", "column": "price", "kind": "float", "dtype": "float", "max_length": None},
    {"name": "seen", "column": "seen", "kind": "ids", "dtype": "int", "max_length": 3},
]


def write_bundle(folder: Path) -> Path:
    """A hand-made bundle with all kinds of inputs."""
    folder.mkdir(parents=True)
    torch.jit.script(TinyGraph()).save(str(folder / "model.ts"))
    (folder / "weights.safetensors").write_bytes(b"")
    files = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in ("model.ts", "weights.safetensors")
    }
    manifest = {"format_version": 1, "id_rule": 1, "files": files, "inputs": INPUTS}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


RUN = """
import sys
from pathlib import Path
import pandas as pd, pyarrow as pa
from matplotlib.figure import Figure
from recsys.settings import TrackingConfig
from recsys.training.tracking import open_tracker

assert "mlflow" not in sys.modules, "mlflow must be imported lazily"
tracker = open_tracker(TrackingConfig(uri="sqlite:///store/mlflow.db", experiment="shop"))
run = tracker.start("first", params={"model": {"name": "lr", "units": [4, 4]}, "seed": None},
                    tags={"model": "lr"})
assert run == tracker.run_id
for step in range(450):
    tracker.log_metrics({"train/loss": 1.0 / (step + 1), "valid/recall@10": 0.5}, step=step)
schema = pa.schema([("user", pa.string()), ("item", pa.int64()), ("seen", pa.list_(pa.int64()))])
tracker.log_inputs("test", fingerprint="f" * 64, uri="shop/test.parquet", schema=schema, rows=10)
tracker.log_figure(Figure(), "plots/roc.png")
tracker.log_json({"stored_bytes": 7}, "memory.json")
tracker.log_text("hello", "notes/hello.txt")
Path("test.parquet").write_bytes(b"rows")
tracker.log_artifact(Path("test.parquet"), "predictions")
with tracker.phase("search"):
    tracker.log_metrics({"train/loss": 3.0}, step=0)
    tracker.log_text("inside", "inside.txt")
example = pd.DataFrame({"user": ["ann", None], "item": [17, None], "price": [0.5, None],
                        "seen": [[1, 2], []]})
uri = tracker.log_bundle(Path("bundle"), example, register="shop-lr")
tracker.finish()
tracker.finish()
Path("done.txt").write_text(f"{run} {uri}")
"""


def run_python(
    code: str, folder: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """A fresh process in ``folder``."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        check=False,
    )


Process = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def python() -> Process:
    """Runs code in a fresh process in a folder, with arguments and environment."""
    return run_python


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process recorded one run, with its console output in ``console``."""
    path = tmp_path_factory.mktemp("tracked")
    write_bundle(path / "bundle")
    done = run_python(RUN, path, PYTHONPATH=str(REPO))
    (path / "console").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def uri(folder: Path) -> str:
    """Address of the store of `folder`."""
    return f"sqlite:///{folder}/store/mlflow.db"


@pytest.fixture(scope="session")
def client(uri: str) -> Any:
    """A client on the store of `folder`."""
    return open_client(uri, create=False)


@pytest.fixture(scope="session")
def first(folder: Path) -> str:
    """Id of the recorded run."""
    return (folder / "done.txt").read_text().split()[0]
