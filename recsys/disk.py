"""Writing to a disk that may be full, into folders that others may want, too."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from recsys.types import InputError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises what safetensors makes of an `OSError`, a full disk, as one that names ``path``."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there with all of ``text``, or as it was."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def readable(path: Path) -> None:
    """Gives a file the mode of any new one: safetensors writes for the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes ``folder`` and keeps other processes that ask for it out, until the end of the block or
    of the process. Errors: `InputError` while another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder}: another process is training this very config there; wait for it, or "
                "give another --out"
            ) from None
        except OSError:
            pass  # a file system that knows no locks
        yield
