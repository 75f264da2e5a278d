"""The tracker on MLflow.

**When the store goes away** in the middle of a run (server down, database locked), training goes
on: one warning line, metrics stay buffered and are tried again at most once a minute and at the
end, artefacts that came meanwhile are named in one line at the end. `start` is stricter: a store
that cannot be reached before anything was computed is an `InputError`. Any other error (a wrong
name, a full disk, a bug) is raised as always.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from recsys.training.stopping import Interrupted
from recsys.training.tracking.environment import environment, git_state, user
from recsys.training.tracking.model import dataset_schema, log_model
from recsys.training.tracking.stores import (
    artifact_root,
    is_outage,
    one_line,
    open_client,
    quiet,
    resolve_uri,
    store_errors,
)
from recsys.training.tracking.tracker import RunStatus, flatten
from serving.errors import InputError
from serving.paths import without_secrets

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_log = logging.getLogger("recsys.tracking")

FLUSH_METRICS = 200  # on sqlite one log_batch of 200 costs 37 ms, a single log_metric 17 ms
FLUSH_SECONDS = 10.0
RETRY_SECONDS = 60.0
SYSTEM_SECONDS = 5.0  # between samples of CPU, memory, disk and network
# Without it the UI opens on its page for chat traces instead of the runs.
_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}
_MAX_METRICS, _MAX_PARAMS, _MAX_TEXT = 1000, 100, 6000  # per batch; of a parameter (MLflow)


class MlflowTracker:
    """A `Tracker` on any MLflow store; sqlite keeps artefacts in ``mlartifacts`` beside the file.

    Metric names lose what MLflow forbids: ``recall@10`` is stored as ``recall_at_10``.
    """

    def __init__(self, *, uri: str, experiment: str, system_metrics: bool = True) -> None:
        self.uri = resolve_uri(uri)
        self._shown = without_secrets(uri)
        self._experiment = experiment
        self._system_metrics = system_metrics
        self._client = open_client(uri)
        self._monitor: Any = None
        self._run: str | None = None
        self._target = ""  # the run that receives metrics and artefacts: a phase, or the run itself
        self._buffer: list[tuple[str, Any]] = []  # (run id, mlflow Metric)
        self._flushed = time.monotonic()
        self._retry_at = 0.0
        self._missed: list[str] = []

    @property
    def run_id(self) -> str | None:
        return self._run

    def start(
        self,
        name: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        resume: str | None = None,
    ) -> str | None:
        assert self._run is None, "one tracker records one run at a time"
        try:
            with quiet():
                known = {**(tags or {}), **({"mlflow.parentRunId": parent} if parent else {})}
                run = self._create(name, known) if resume is None else self._reopen(resume)
                self._log_params(run, flatten(params))
                self._client.log_dict(run, environment(), "environment.json")
                self._start_monitor(run, resume is not None)
        except store_errors() as error:
            if not is_outage(error):
                raise
            raise InputError(
                f"tracking.uri {self._shown!r} cannot be reached ({one_line(error)}); "
                "start the server, or set tracking.uri to null"
            ) from error
        self._run = self._target = run
        return run

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer += [
            (self._target, Metric(name.replace("@", "_at_"), float(value), now, step))
            for name, value in metrics.items()
        ]
        waited = time.monotonic() - self._flushed
        if len(self._buffer) >= FLUSH_METRICS or waited >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self._flushed = time.monotonic()
        while self._buffer:
            run = self._buffer[0][0]  # entries of one run lie together: phases do not interleave
            batch = [metric for owner, metric in self._buffer[:_MAX_METRICS] if owner == run]
            if not self._send("", lambda r=run, b=batch: self._client.log_batch(r, metrics=b)):  # type: ignore[misc]
                return
            del self._buffer[: len(batch)]

    def log_inputs(
        self, role: str, *, fingerprint: str, uri: str, schema: pa.Schema, rows: int
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=role,
            digest=fingerprint[:36],  # the width of MLflow's column
            source_type="url" if "://" in uri else "local",
            source=json.dumps({"uri": uri}),
            schema=json.dumps(dataset_schema(schema)),
            profile=json.dumps({"num_rows": rows}),
        )
        entry = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", role)])
        self._send(f"inputs {role}", lambda: self._client.log_inputs(self._run, [entry]))

    def log_figure(self, figure: Figure, path: str) -> None:
        self._send(path, lambda: self._client.log_figure(self._target, figure, path))

    def log_json(self, value: Mapping[str, Any] | Sequence[Any], path: str) -> None:
        self._send(path, lambda: self._client.log_dict(self._target, value, path))

    def log_text(self, text: str, path: str) -> None:
        self._send(path, lambda: self._client.log_text(self._target, text, path))

    def log_artifact(self, file: Path, folder: str = "") -> None:
        path = f"{folder}/{file.name}".lstrip("/")
        self._send(path, lambda: self._client.log_artifact(self._target, str(file), folder or None))

    def log_bundle(
        self, bundle: Path, example: pd.DataFrame, register: str | None = None
    ) -> str | None:
        assert self._run is not None, "log_bundle before start"
        run, uris = self._run, []
        self._send(
            "bundle", lambda: uris.append(log_model(self.uri, run, bundle, example, register))
        )
        return uris[0] if uris else None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        outer, run = self._target, ""

        def enter() -> None:
            nonlocal run
            run = self._find_phase(name) or self._create(name, {"mlflow.parentRunId": outer})

        self._send(f"phase {name}", enter)
        self._target = run or outer  # in an outage the phase's metrics stay with the run
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, Interrupted):
            status = "KILLED"
            raise
        finally:
            self.flush()
            self._target = outer
            if run:
                self._send(f"end of {name}", lambda: self._client.set_terminated(run, status))

    def finish(self, status: RunStatus = "FINISHED") -> None:
        if self._run is None:
            return
        self._retry_at = 0.0  # the last chance of whatever is still buffered
        run, self._run = self._run, None
        if self._monitor is not None:
            self._send("system metrics", self._stop_monitor)
        self.flush()
        self._send("status", lambda: self._client.set_terminated(run, status))
        if self._buffer or self._missed:
            lost = [*self._missed, *([f"{len(self._buffer)} metrics"] if self._buffer else [])]
            _log.warning("tracking: run %s lacks %s", run, ", ".join(lost))
        self._buffer, self._missed, self._target = [], [], ""

    def _send(self, what: str, action: Callable[[], Any]) -> bool:
        """Runs a call on the store; False when it is away (``what`` is then noted as missed)."""
        if time.monotonic() >= self._retry_at:
            try:
                with quiet():
                    action()
                return True
            except store_errors() as error:
                if not is_outage(error):
                    raise
                if self._retry_at == 0.0:
                    _log.warning(
                        "tracking: %s is away (%s); training goes on", self._shown, one_line(error)
                    )
                self._retry_at = time.monotonic() + RETRY_SECONDS
        if what:
            self._missed.append(what)
        return False

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        git = git_state()
        known = {
            "mlflow.user": user(),
            "mlflow.source.name": Path(sys.argv[0]).name,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": git.get("commit", ""),
            "git.dirty": git.get("dirty", ""),
        }
        tags = {key: value for key, value in known.items() if value} | dict(tags)
        run = self._client.create_run(self._experiment_id(), tags=tags, run_name=name)
        return str(run.info.run_id)

    def _reopen(self, run: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(run, status="RUNNING")
        except MlflowException as error:
            if is_outage(error):
                raise
            raise InputError(
                f"cannot resume run {run!r} in {self._shown}: {one_line(error)}; "
                "set tracking.uri to where it began, or remove the folder of the run to start anew"
            ) from error
        return run

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            return str(
                self._client.create_experiment(
                    self._experiment, artifact_location=artifact_root(self.uri), tags=_EXPERIMENT
                )
            )
        if found.lifecycle_stage != "active":
            raise InputError(
                f"tracking.experiment {self._experiment!r} was deleted in {self._shown}; "
                "restore it or choose another name"
            )
        return str(found.experiment_id)

    def _find_phase(self, name: str) -> str:
        """The nested run of an earlier, interrupted attempt, reopened; empty if there is none."""
        query = f"tags.`mlflow.parentRunId` = '{self._target}'"
        for run in self._client.search_runs([self._experiment_id()], query):
            if run.info.run_name == name:
                return self._reopen(run.info.run_id)
        return ""

    def _log_params(self, run: str, params: Mapping[str, str]) -> None:
        """MLflow never changes a parameter; what a resumed run changed becomes a tag."""
        from mlflow.entities import Param

        known = self._client.get_run(run).data.params
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for first in range(0, len(new), _MAX_PARAMS):
            self._client.log_batch(run, params=new[first : first + _MAX_PARAMS])
        for key, value in params.items():
            if key in known and known[key] != value[:_MAX_TEXT]:
                self._client.set_tag(run, f"resumed.{key}", value)

    def _start_monitor(self, run: str, resumed: bool) -> None:
        if not self._system_metrics:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # Its thread outlives `quiet`, and what it says in an outage `_send` says already.
        logging.getLogger("mlflow.system_metrics").setLevel(logging.CRITICAL)
        self._monitor = SystemMetricsMonitor(
            run, sampling_interval=SYSTEM_SECONDS, resume_logging=resumed, tracking_uri=self.uri
        )
        self._monitor.start()

    def _stop_monitor(self) -> None:
        monitor, self._monitor = self._monitor, None
        monitor.finish()
        # A run shorter than one sampling interval still gets its one sample.
        monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()
