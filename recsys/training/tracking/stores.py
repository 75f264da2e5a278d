"""Where MLflow keeps runs: addresses, clients, silence and outages."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.errors import InputError
from serving.paths import without_secrets

_SQLITE = "sqlite:///"
_SERVERS = ("http", "https", "postgresql", "mysql", "mssql", "databricks")


def resolve_uri(uri: str) -> str:
    """The absolute address of a store. Relative sqlite paths start at the current folder.

    Raises `InputError` for the file stores that MLflow no longer takes.
    """
    if uri.startswith(_SQLITE):
        return _SQLITE + str(_sqlite_file(uri))
    if uri.split("://")[0].split("+")[0] in _SERVERS:
        return uri
    raise InputError(
        f"tracking.uri {without_secrets(uri)!r} is no store MLflow can use; write "
        "sqlite:///mlflow.db for a file or http://host:port for a server"
    )


def artifact_root(uri: str) -> str | None:
    """Folder URI for the artefacts of a sqlite store: ``mlartifacts`` beside the database file.

    ``None`` for a server, which decides itself.
    """
    if not uri.startswith(_SQLITE):
        return None
    return (_sqlite_file(uri).parent / "mlartifacts").as_uri()


def _sqlite_file(uri: str) -> Path:
    path = Path(uri.removeprefix(_SQLITE)).expanduser()
    if path.name in ("", ":memory:"):
        raise InputError(
            f"tracking.uri {without_secrets(uri)!r} names no database file; write sqlite:///mlflow.db"
        )
    return path.absolute()


def open_client(uri: str, *, create: bool = True) -> Any:
    """An ``mlflow.MlflowClient`` on ``uri``; wrap its calls in `quiet`.

    ``create``: make a sqlite file that is not there. Raises `InputError` when it is missing and
    must not be made, or its folder cannot be written.
    """
    address = resolve_uri(uri)
    if address.startswith(_SQLITE):
        file = _sqlite_file(address)
        if not create and not file.is_file():
            raise InputError(
                f"tracking.uri {without_secrets(uri)!r}: no database at {file}; train something "
                "first"
            )
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"tracking.uri {without_secrets(uri)!r}: cannot make {file.parent}: {error}"
            ) from error
    else:
        # MLflow waits minutes per call by default before it gives up; training must not.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    with quiet():
        from mlflow import MlflowClient

        try:
            return MlflowClient(address, registry_uri=address)
        except store_errors() as error:
            raise InputError(
                f"tracking.uri {without_secrets(uri)!r} cannot be opened: {one_line(error)}"
            ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No MLflow or alembic chatter inside; errors still arrive, as exceptions."""
    # MLflow reads these when it downloads (a bar per file) and when it is imported (usage reports).
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401  it sets the levels of its loggers when first imported

        loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def store_errors() -> tuple[type[Exception], ...]:
    """What a call on a client can raise for a store's sake."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


def is_outage(error: BaseException) -> bool:
    """Whether ``error`` says that the store cannot be reached, not that the request was wrong."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException) and error.error_code == "TEMPORARILY_UNAVAILABLE":
        return True
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ConnectionError, TimeoutError, RequestException, OperationalError)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def one_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
