"""Tracking: what a run leaves in the store, silence, and the logged model."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from recsys.settings import TrackingConfig
from recsys.training.tracking import NullTracker, flatten, open_client, open_tracker, resolve_uri
from recsys.training.tracking.model import plain_example, signature
from recsys.types import InputError, InputField

LOAD = """
import sys
import pandas as pd
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
rows = pd.DataFrame({"user": ["ann", None], "item": [17, None], "price": [0.5, None],
                     "seen": [[1, 2], []]})
print(*model.predict(rows).tolist())
import serving
assert "mlartifacts" in serving.__file__, serving.__file__
assert "recsys" not in sys.modules
try:
    model.predict(rows.drop(columns="price"))
except mlflow.exceptions.MlflowException as error:
    assert "price" in str(error)
else:
    raise AssertionError("a missing column was accepted")
"""


# -- a recorded run ----------------------------------------------------------------------------


def test_recording_says_nothing_and_writes_beside_the_database(folder: Path) -> None:
    assert (folder / "console").read_text() == ""
    here = {path.name for path in folder.iterdir()}
    assert here == {"bundle", "console", "done.txt", "store", "test.parquet"}
    assert {path.name for path in (folder / "store").iterdir()} == {"mlflow.db", "mlartifacts"}


def test_run_params_tags_and_status(client: Any, first: str) -> None:
    run = client.get_run(first)
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.name": "lr", "model.units": "[4, 4]", "seed": "null"}
    assert run.data.tags["model"] == "lr"
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_every_metric_point_is_there(client: Any, first: str) -> None:
    points = client.get_metric_history(first, "train/loss")
    assert [(p.step, p.value) for p in points] == [(s, 1.0 / (s + 1)) for s in range(450)]
    assert len(client.get_metric_history(first, "valid/recall_at_10")) == 450


def test_system_metrics_are_there(client: Any, first: str) -> None:
    names = client.get_run(first).data.metrics
    assert names["system/system_memory_usage_megabytes"] > 0


def test_inputs_have_digest_role_schema_and_rows(client: Any, first: str) -> None:
    (entry,) = client.get_run(first).inputs.dataset_inputs
    assert entry.dataset.digest == "f" * 36
    assert [tag.value for tag in entry.tags] == ["test"]
    assert json.loads(entry.dataset.profile) == {"num_rows": 10}
    columns = json.loads(entry.dataset.schema)["mlflow_colspec"]
    assert [(c["name"], c["type"]) for c in columns] == [
        ("user", "string"),
        ("item", "long"),
        ("seen", "array"),
    ]


def test_artefacts_are_there(client: Any, first: str, tmp_path: Path) -> None:
    def names(folder: str | None = None) -> set[str]:
        return {file.path for file in client.list_artifacts(first, folder)}

    assert names() == {"environment.json", "memory.json", "notes", "plots", "predictions"}
    assert names("plots") == {"plots/roc.png"}
    assert names("predictions") == {"predictions/test.parquet"}
    found = client.download_artifacts(first, "environment.json", str(tmp_path))
    facts = json.loads(Path(found).read_text())
    assert facts["torch"] == torch.__version__
    assert any(line.startswith("mlflow==") for line in facts["packages"])


def test_phase_is_a_nested_run(client: Any, first: str) -> None:
    experiment = client.get_run(first).info.experiment_id
    (child,) = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{first}'")
    assert child.info.run_name == "search"
    assert child.info.status == "FINISHED"
    assert child.data.metrics == {"train/loss": 3.0}
    assert [file.path for file in client.list_artifacts(child.info.run_id)] == ["inside.txt"]


def test_model_loads_without_recsys_and_with_pickle_forbidden(
    folder: Path, uri: str, tmp_path: Path, python: Callable[..., Any]
) -> None:
    model = (folder / "done.txt").read_text().split()[1]
    done = python(LOAD, tmp_path, uri, model, MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    assert done.returncode == 0, done.stderr
    expected = torch.sigmoid(torch.tensor([0.5 + 1 + 2, -1.0 + 0 + 0], dtype=torch.float64))
    assert [float(x) for x in done.stdout.split()] == pytest.approx(expected.tolist(), abs=1e-6)


def test_model_holds_the_bundle_and_no_pickle(client: Any, folder: Path) -> None:
    (version,) = client.search_model_versions("name = 'shop-lr'")
    assert version.version in (1, "1")
    root = next((folder / "store/mlartifacts").rglob("MLmodel")).parent
    files = {path.name for path in root.rglob("*") if path.is_file()}
    assert {"MLmodel", "pyfunc.py", "model.ts", "manifest.json", "requirements.txt"} <= files
    assert "input_example.json" in files
    assert not any(name.endswith((".pkl", ".pickle", ".pyc")) for name in files)
    assert (root / "code/serving/scorer.py").is_file()
    requirements = (root / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in requirements


def test_signature_of_columns_that_pandas_holds_differently() -> None:
    fields = {"cat": "text", "int": "int", "nulls": "int", "day": "timestamp", "dec": "float"}
    inputs = [
        *(InputField(name=k, column=k, kind="id", dtype=v) for k, v in fields.items()),
        InputField(name="seen", column="seen", kind="ids", dtype="text"),
    ]
    frame = pd.DataFrame(
        {
            "seen": [np.array(["x"]), None],
            "cat": pd.Categorical(["a", None]),
            "int": np.array([1, 2], np.int32),
            "nulls": [1, None],
            "day": pd.to_datetime(["2026-01-01", None]),
            "dec": [Decimal("1.5"), None],
            "label": [0, 1],
        }
    )
    example = plain_example(inputs, frame)
    assert list(example) == [*fields, "seen"]
    assert example["seen"].tolist() == [["x"], []]
    found = signature(inputs, frame).inputs
    types = {c.name: str(c.type) for c in found}
    assert types == {
        "cat": "Any",  # MLflow refuses categories for text
        "int": "Any",  # and integers beside nulls, which a later frame may have
        "nulls": "Any",
        "day": "DataType.datetime",
        "dec": "Any",
        "seen": "Array(string)",
    }
    assert [c.name for c in found if not c.required] == ["seen"]


# -- without a store ---------------------------------------------------------------------------


def test_no_uri_gives_the_null_tracker() -> None:
    tracker = open_tracker(TrackingConfig(uri=None))
    assert isinstance(tracker, NullTracker)
    assert tracker.start("x", params={}) is None
    with tracker.phase("search"):
        tracker.log_metrics({"a": 1.0}, step=0)
    tracker.finish()


def test_names_of_columns_become_names_that_mlflow_takes() -> None:
    found = flatten({"features": {"price ($)": {"type": "numeric"}, "a+b/c": {}}})
    assert found == {"features.price ___.type": "numeric", "features.a_b/c": "{}"}


def test_flatten() -> None:
    nested = {
        "a": {"b": 1, "c": {"d": None}},
        "e": [1, "x"],
        "f": {},
        "g": True,
        "h": "s",
        "i": 0.1,
    }
    assert flatten(nested) == {
        "a.b": "1",
        "a.c.d": "null",
        "e": '[1, "x"]',
        "f": "{}",
        "g": "true",
        "h": "s",
        "i": "0.1",
    }


def test_resolve_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///a/mlflow.db") == f"sqlite:///{tmp_path}/a/mlflow.db"
    assert resolve_uri("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert resolve_uri("https://host:5000") == "https://host:5000"
    for wrong in ("mlruns", "file:./mlruns", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(InputError, match=r"sqlite:///mlflow\.db"):
            resolve_uri(wrong)


def test_reading_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no database at"):
        open_client(f"sqlite:///{tmp_path}/mlflow.db", create=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make"):
        open_client(f"sqlite:///{tmp_path}/file/mlflow.db")
