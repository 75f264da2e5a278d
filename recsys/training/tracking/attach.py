"""Pictures for a run that has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from recsys.training.tracking.stores import is_outage, one_line, open_client, quiet, store_errors
from serving.errors import InputError
from serving.paths import without_secrets

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FinishedRun:
    """Run ``run_id`` of the store at ``uri``; its status and everything it logged stay as they are.

    Raises `InputError` if there is no such store or no such run in it.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri = uri
        self.run_id = run_id
        self._client = open_client(uri, create=False)
        self._call(lambda: self._client.get_run(run_id))

    def log_figure(self, figure: Figure, path: str) -> None:
        """A plot, as PNG; it replaces an older one at ``path``."""
        self._call(lambda: self._client.log_figure(self.run_id, figure, path))

    def _call(self, action: Callable[[], Any]) -> None:
        try:
            with quiet():
                action()
        except store_errors() as error:
            if is_outage(error):
                raise InputError(
                    f"tracking.uri {without_secrets(self.uri)!r} cannot be reached "
                    f"({one_line(error)})"
                ) from error
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                raise InputError(
                    f"no run {self.run_id!r} in {without_secrets(self.uri)}, where the bundle was "
                    "to be explained; give the store that its training wrote to"
                ) from error
            raise
