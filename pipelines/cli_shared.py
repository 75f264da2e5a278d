"""What the verbs of the command line share: options, progress, printing."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from serving.paths import without_secrets

ConfigFile = Annotated[Path, typer.Argument(help="YAML file of one complete run.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, for example train.max_epochs=3.")
]
DataRoot = Annotated[
    str,
    typer.Option(
        "--data-root", envvar="RECSYS_DATA_ROOT", help="Folder that data paths are relative to."
    ),
]
RunsFolder = Annotated[Path, typer.Option("--out", help="Folder of runs (checkpoints, bundles).")]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="Folder of encoded data. Default: OUT/cache.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
TrackingUri = Annotated[str, typer.Option("--uri", help="MLflow tracking URI.")]
DEFAULT_URI = "sqlite:///mlflow.db"


def reporter() -> Any:
    """Progress on stderr."""
    from recsys.training.progress import ConsoleReporter

    return ConsoleReporter()


def command_line() -> str:
    """The command as it can be given again, without what is secret in its URLs."""
    return shlex.join(["recsys", *map(without_secrets, sys.argv[1:])])


def show(result: Any, as_json: bool, render: Any) -> None:
    """Prints ``result``: as one JSON object, or what ``render`` makes of it."""
    if as_json:
        from recsys.bundle.folder import plain

        typer.echo(json.dumps(plain(result), allow_nan=False))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160  # a pipe has no width; tables should not be cut
    console = Console(markup=False, highlight=False, soft_wrap=True, width=width)
    console.print(render(result))
