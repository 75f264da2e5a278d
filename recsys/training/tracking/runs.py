"""Reading finished runs back from a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.training.tracking.stores import is_outage, one_line, open_client, quiet, store_errors
from serving.errors import InputError
from serving.paths import without_secrets

_PAGE = 1000


@dataclass(frozen=True)
class RunRecord:
    """What the store knows of one run. ``digests``: role of a data set -> its digest."""

    run_id: str
    name: str
    experiment: str
    status: str
    metrics: dict[str, float]
    tags: dict[str, str]
    digests: dict[str, str]


class RunReader:
    """Runs of one store; raises `InputError` if there is no store at ``uri``."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = open_client(uri, create=False)

    def find(self, wanted: Sequence[str] = (), *, experiment: str | None = None) -> list[RunRecord]:
        """The runs called ``wanted`` (ids, names, or names of their folders), in that order; all,
        oldest first, if empty.

        A name stands for its newest run. Phases of runs are not runs of their own.
        """
        runs = self._all(experiment)
        if not wanted:
            return runs
        by_key = {run.name: run for run in runs} | {run.run_id: run for run in runs}
        by_key |= {run.tags["folder"]: run for run in runs if "folder" in run.tags}
        for key in wanted:
            if key not in by_key:
                shown = without_secrets(self.uri)
                where = f"experiment {experiment!r} of {shown}" if experiment else shown
                known = ", ".join(sorted({run.name for run in runs})[:10]) or "nothing"
                raise InputError(f"no run {key!r} in {where}; it holds {known}")
        return [by_key[key] for key in wanted]

    def fetch(self, run_id: str, path: str, into: Path) -> Path | None:
        """A copy of an artefact of a run in folder ``into``; ``None`` if the run has none such."""
        folder = path.rpartition("/")[0]
        return self._call(lambda: self._fetch(run_id, folder, path, into))

    def _fetch(self, run_id: str, folder: str, path: str, into: Path) -> Path | None:
        listed = self._client.list_artifacts(run_id, folder or None)
        if path not in {file.path for file in listed}:
            return None
        return Path(self._client.download_artifacts(run_id, path, str(into)))

    def _all(self, experiment: str | None) -> list[RunRecord]:
        experiments = {
            found.experiment_id: found.name
            for found in self._call(self._client.search_experiments)
            if experiment in (None, found.name)
        }
        if experiment is not None and not experiments:
            raise InputError(f"no experiment {experiment!r} in {without_secrets(self.uri)}")
        runs: list[Any] = []
        token = None
        while experiments:
            page = self._call(
                lambda after=token: self._client.search_runs(
                    list(experiments),
                    max_results=_PAGE,
                    order_by=["attributes.start_time ASC"],
                    page_token=after,
                )
            )
            runs += page
            token = page.token
            if not token:
                break
        return [
            _record(run, experiments[run.info.experiment_id])
            for run in runs
            if "mlflow.parentRunId" not in run.data.tags
        ]

    def _call(self, action: Any) -> Any:
        try:
            with quiet():
                return action()
        except store_errors() as error:
            if not is_outage(error):
                raise
            raise InputError(
                f"tracking.uri {without_secrets(self.uri)!r} cannot be reached ({one_line(error)})"
            ) from error


def _record(run: Any, experiment: str) -> RunRecord:
    digests = {}
    for entry in run.inputs.dataset_inputs:
        for tag in entry.tags:
            if tag.key == "mlflow.data.context":
                digests[tag.value] = entry.dataset.digest
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name,
        experiment=experiment,
        status=run.info.status,
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
        digests=digests,
    )
