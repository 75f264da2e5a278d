"""What a run of one kind does in its own way; `pipelines.train` does all the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from matplotlib.figure import Figure

from pipelines.prepare import Prepared, PreparedSequences
from recsys.build import Assembly
from recsys.build_sequence import SequenceAssembly
from recsys.bundle import VerifyReport
from recsys.training.phase import Phase
from recsys.training.position import History
from recsys.training.tracking import Tracker
from recsys.training.trainer import Evaluate
from recsys.types import Metrics


class Task(Protocol):
    """A prepared run: how it is judged, shown and exported."""

    @property
    def prepared(self) -> Prepared | PreparedSequences:
        """Its data, features and modules."""

    @property
    def assembly(self) -> Assembly | SequenceAssembly:
        """The modules that are trained; after `finalise`, those that are served."""

    @property
    def tags(self) -> dict[str, str]:
        """What runs are told apart by in the tracker."""

    @property
    def evaluate(self) -> Evaluate | None:
        """What each epoch is judged by; ``None``: the metrics of clicks."""

    def phases(self) -> Sequence[Phase] | None:
        """What the trainer runs; ``None``: one ordinary phase."""

    def measure(self, tracker: Tracker) -> dict[str, Metrics]:
        """Final metrics of valid and test, with their pictures in ``tracker``."""

    def curves(self, history: History, title: str) -> Figure:
        """Loss and metrics by epoch."""

    def finalise(self, tracker: Tracker) -> dict[str, Any]:
        """Puts the serving form into the modules, which are on the CPU; returns what there is to
        say of it, and logs pictures of what the model looks at."""

    def export(self, out: Path, rows: pa.Table, manifest: Mapping[str, Any]) -> VerifyReport:
        """Writes the bundle to ``out``, proved on raw ``rows``."""
