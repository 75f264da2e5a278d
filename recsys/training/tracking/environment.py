"""What a run ran on: versions, machine, git commit. Plain facts, no tracking here."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

MODEL_PACKAGES = ("numpy", "pandas", "polars", "polars-hash", "pyarrow", "torch")
"""What `serving` needs to score a bundle."""


def environment() -> dict[str, Any]:
    """Python, machine and every installed distribution (``name==version``, sorted)."""
    installed = {
        f"{name}=={dist.version}"
        for dist in metadata.distributions()
        if (name := dist.metadata["Name"])
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "recsys": version("recsys"),
        "torch": version("torch"),
        "packages": sorted(installed, key=str.lower),
    }


def version(package: str) -> str:
    """Installed version of a distribution, ``unknown`` when it runs from a plain checkout."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def model_requirements() -> list[str]:
    """Pinned pip requirements of a bundle served through MLflow.

    Local version parts are dropped: ``2.13.0+cpu`` is on no public index.
    """
    pins = [(name, version(name).split("+")[0]) for name in ("mlflow", *MODEL_PACKAGES)]
    return [name if pin == "unknown" else f"{name}=={pin}" for name, pin in pins]


def user() -> str:
    """Login name; empty where the system has none for this process (some containers)."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def git_state(folder: Path | None = None) -> dict[str, str]:
    """``commit`` and ``dirty`` of the repository around ``folder`` (default: the current one).

    Empty outside a repository or without git: a run is worth recording anyway.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": "true" if changes else "false"}


def _git(folder: Path | None, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
