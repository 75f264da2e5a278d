"""The MLflow UI on the store that runs were tracked in."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from recsys.training.tracking import resolve_uri
from recsys.training.tracking.stores import artifact_root
from serving.errors import InputError
from serving.paths import without_secrets


def run(uri: str, port: int = 5000, host: str = "127.0.0.1") -> None:
    """Serves the UI until interrupted. Raises `InputError` if it cannot start."""
    print(f"MLflow UI: http://{host}:{port}  (stop with Ctrl-C)", file=sys.stderr, flush=True)
    # The server's job runner (eight more processes) and its usage reports have no work here.
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(arguments(uri, port, host), env=os.environ | settings)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # the signal reached the server too: let it close its workers
        return
    if code != 0:
        raise InputError(f"the MLflow UI ended with code {code}; is port {port} in use?")


def command(uri: str, port: int = 5000, host: str = "127.0.0.1") -> str:
    """The same as a line for the shell, to copy and paste in any folder."""
    return shlex.join(arguments(uri, port, host))


def arguments(uri: str, port: int, host: str) -> list[str]:
    """The command as a list. Raises `InputError` for a store with no UI of its own to start."""
    address = resolve_uri(uri)
    if address.startswith("http"):
        raise InputError(f"{without_secrets(uri)} is an MLflow server: open it in a browser")
    # Without a root of its own the server would make one in whatever folder it is started in.
    root = artifact_root(address)
    roots = [] if root is None else ["--default-artifact-root", root]
    return [
        _python(),
        *("-m", "mlflow", "ui", "--backend-store-uri", address, *roots),
        *("--host", host, "--port", str(port), "--workers", "1"),  # one reader, quick to start
    ]


def _python() -> str:
    # Relative to a virtual environment's folder it would only work there.
    return str(Path(sys.executable).absolute())
