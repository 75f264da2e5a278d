"""Tracking when things go on, go wrong or go away: resume, phases, outages."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from recsys.training.stopping import Interrupted
from recsys.training.tracking import MlflowTracker, RunStatus
from recsys.training.tracking.stores import is_outage
from recsys.types import InputError

# -- resume ------------------------------------------------------------------------------------


def test_resume_continues_the_same_run(uri: str, client: Any) -> None:
    tracker = MlflowTracker(uri=uri, experiment="resumed", system_metrics=False)
    first = tracker.start("first", params={"model": {"name": "lr", "units": [4, 4]}})
    for step in range(3):
        tracker.log_metrics({"train/loss": 1.0 / (step + 1)}, step=step)
    with tracker.phase("search"):
        tracker.log_metrics({"train/loss": 3.0}, step=0)
    tracker.finish()

    tracker = MlflowTracker(uri=uri, experiment="resumed", system_metrics=False)
    params = {"model": {"name": "lr", "units": [8]}, "epochs": 3}
    assert tracker.start("first", params=params, resume=first) == first
    assert client.get_run(first).info.status == "RUNNING"
    tracker.log_metrics({"train/loss": 0.25}, step=3)
    with tracker.phase("search"):
        tracker.log_metrics({"train/loss": 2.0}, step=1)
    tracker.finish("KILLED")
    run = client.get_run(first)
    assert run.info.status == "KILLED"
    assert len(client.get_metric_history(first, "train/loss")) == 4
    assert run.data.params["epochs"] == "3"
    assert run.data.params["model.units"] == "[4, 4]"  # MLflow never changes one
    assert run.data.tags["resumed.model.units"] == "[8]"
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first}'"
    )
    assert len(children) == 1
    assert len(client.get_metric_history(children[0].info.run_id, "train/loss")) == 2


def test_resuming_an_unknown_run_is_one_clear_line(uri: str) -> None:
    tracker = MlflowTracker(uri=uri, experiment="shop", system_metrics=False)
    with pytest.raises(InputError, match="cannot resume run '0123'"):
        tracker.start("x", params={}, resume="0123")


@pytest.mark.parametrize(
    ("error", "status"), [(ZeroDivisionError, "FAILED"), (Interrupted, "KILLED")]
)
def test_a_failing_or_stopped_phase_is_marked(
    uri: str, client: Any, error: type[Exception], status: RunStatus
) -> None:
    tracker = MlflowTracker(uri=uri, experiment="failing", system_metrics=False)
    run = tracker.start("x", params={})
    with pytest.raises(error), tracker.phase("search"):
        raise error
    tracker.finish(status)
    parent = client.get_run(run)
    (child,) = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run}'"
    )
    assert (parent.info.status, child.info.status) == (status, status)


def test_a_deleted_experiment_is_one_clear_line(uri: str, client: Any) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(InputError, match="'gone' was deleted"):
        MlflowTracker(uri=uri, experiment="gone").start("x", params={})


def test_many_params_and_long_ones(uri: str, client: Any) -> None:
    tracker = MlflowTracker(uri=uri, experiment="shop", system_metrics=False)
    params = {f"field{number}": number for number in range(250)} | {"long": "x" * 7000}
    run = tracker.start("wide", params=params)
    tracker.finish()
    found = client.get_run(run).data.params
    assert len(found) == 251
    assert found["long"] == "x" * 6000


# -- outages -----------------------------------------------------------------------------------


class Away:
    """A client whose store is gone until told otherwise."""

    def __init__(self, client: Any) -> None:
        self.client, self.away, self.calls = client, True, 0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.away:
                raise ConnectionRefusedError("refused")
            return getattr(self.client, name)(*args, **kwargs)

        return call


def test_outage_costs_one_line_and_no_metric(
    uri: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(uri=uri, experiment="shop", system_metrics=False)
    run = tracker.start("storm", params={})
    tracker._client = away = Away(client)
    with caplog.at_level(logging.WARNING):
        for step in range(600):
            tracker.log_metrics({"train/loss": float(step)}, step=step)
        tracker.log_text("lost", "notes.txt")
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.text
    assert away.calls == 1  # not tried again for a minute
    away.away = False
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        tracker.finish()
    assert [record.getMessage() for record in caplog.records] == [
        f"tracking: run {run} lacks notes.txt"
    ]
    assert len(client.get_metric_history(run, "train/loss")) == 600
    assert client.get_run(run).info.status == "FINISHED"


def test_outage_to_the_end_says_what_is_lost(
    uri: str, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = MlflowTracker(uri=uri, experiment="shop", system_metrics=False)
    run = tracker.start("storm", params={})
    tracker._client = Away(client)
    with caplog.at_level(logging.WARNING):
        with tracker.phase("search"):
            tracker.log_metrics({"a": 1.0, "b": 2.0}, step=0)
        tracker.finish()
    assert f"run {run} lacks" in caplog.text
    assert "2 metrics" in caplog.text


def test_other_errors_are_raised(uri: str) -> None:
    tracker = MlflowTracker(uri=uri, experiment="shop", system_metrics=False)
    tracker.start("x", params={})
    with pytest.raises(FileNotFoundError):
        tracker.log_artifact(Path("no/such/file"))
    tracker.finish("FAILED")


def test_unreachable_server_at_the_start_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = MlflowTracker(uri="http://127.0.0.1:9", experiment="shop")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9' cannot be reached"):
        tracker.start("x", params={})


def test_what_counts_as_an_outage() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

    assert is_outage(MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE))
    assert is_outage(ConnectionResetError())
    assert not is_outage(MlflowException("no such run"))
    assert not is_outage(FileNotFoundError())
