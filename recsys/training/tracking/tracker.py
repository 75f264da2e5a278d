"""What training tells about itself: the `Tracker` protocol and its null object.

`recsys.training.tracking.open_tracker` chooses between it and MLflow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """One run's record. All calls are made by one thread, between `start` and `finish`.

    Artefact paths are relative and use ``/``: ``plots/roc.png``.
    """

    @property
    def run_id(self) -> str | None:
        """The id of the run in the store; ``None`` when nothing is tracked."""

    def start(
        self,
        name: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        resume: str | None = None,
    ) -> str | None:
        """Opens a run called ``name``, nested under run ``parent`` if there is one, or reopens run
        ``resume``; returns its id.

        ``params`` may be nested; it is stored flat with dotted names (see `flatten`).
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Points of curves at ``step`` (optimiser steps). Buffered: see `flush`."""

    def log_inputs(
        self, role: str, *, fingerprint: str, uri: str, schema: pa.Schema, rows: int
    ) -> None:
        """The data that played ``role`` (``train``, ``valid``, ``test``)."""

    def log_figure(self, figure: Figure, path: str) -> None:
        """A plot, as PNG."""

    def log_json(self, value: Mapping[str, Any] | Sequence[Any], path: str) -> None:
        """A JSON document."""

    def log_text(self, text: str, path: str) -> None:
        """A text file."""

    def log_artifact(self, file: Path, folder: str = "") -> None:
        """A copy of a local file, under ``folder``."""

    def log_bundle(
        self, bundle: Path, example: pd.DataFrame, register: str | None = None
    ) -> str | None:
        """The bundle folder as a servable model; returns its URI.

        ``example``: a few raw rows with exactly the columns the bundle takes.
        ``register``: name in the model registry, ``None`` for none.
        """

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Inside, metrics and artefacts belong to a nested run called ``name``."""

    def flush(self) -> None:
        """Sends buffered metrics now."""

    def finish(self, status: RunStatus = "FINISHED") -> None:
        """Closes the run. Safe to call twice and without a `start`."""


class NullTracker:
    """Tracks nothing: what ``tracking.uri: null`` gives."""

    run_id: str | None = None

    def start(
        self,
        name: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
        resume: str | None = None,
    ) -> str | None:
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_inputs(
        self, role: str, *, fingerprint: str, uri: str, schema: pa.Schema, rows: int
    ) -> None:
        pass

    def log_figure(self, figure: Figure, path: str) -> None:
        pass

    def log_json(self, value: Mapping[str, Any] | Sequence[Any], path: str) -> None:
        pass

    def log_text(self, text: str, path: str) -> None:
        pass

    def log_artifact(self, file: Path, folder: str = "") -> None:
        pass

    def log_bundle(
        self,
        bundle: Path,
        example: pd.DataFrame,
        register: str | None = None,
    ) -> str | None:
        return None

    def phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def flush(self) -> None:
        pass

    def finish(self, status: RunStatus = "FINISHED") -> None:
        pass


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as dotted names and texts.

    ``{"train": {"lr": 0.1, "units": [4, 4]}}`` -> ``{"train.lr": "0.1", "train.units": "[4, 4]"}``.
    Sequences are JSON, ``None`` is ``null``, empty mappings ``{}``. What MLflow forbids in names
    (features have the names of columns) becomes ``_``.
    """
    flat: dict[str, str] = {}
    for key, value in params.items():
        name = prefix + re.sub(r"[^\w\-. /:]", "_", str(key))
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, str):
            flat[name] = value
        elif value is None or isinstance(value, (bool, Mapping, list, tuple)):
            flat[name] = json.dumps(value, default=str)
        else:
            flat[name] = str(value)
    return flat
