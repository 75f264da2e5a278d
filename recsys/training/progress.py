"""Progress of long work: a bar on a terminal, plain lines on stderr otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_LINE_EVERY_SECONDS = 10.0


class Bar(Protocol):
    """One piece of work under way."""

    def advance(self, done: int, note: str = "") -> None:
        """``done`` more units are finished; ``note`` replaces the text behind the bar."""


class Reporter(Protocol):
    """Where progress and remarks go."""

    def say(self, line: str) -> None:
        """One line for the user."""

    def bar(
        self, title: str, total: int | None = None, start: int = 0
    ) -> AbstractContextManager[Bar]:
        """A context that yields a `Bar` counting from ``start`` to ``total``."""


class _Silence:
    def advance(self, done: int, note: str = "") -> None:
        """Says nothing."""


class SilentReporter:
    """Says nothing: for library use and tests."""

    def say(self, line: str) -> None:
        """Says nothing."""

    @contextmanager
    def bar(self, title: str, total: int | None = None, start: int = 0) -> Iterator[Bar]:
        """A bar that nobody sees."""
        yield _Silence()


class _RichBar:
    def __init__(self, progress: Progress, title: str, total: int | None, start: int) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=total, completed=start, note="")

    def advance(self, done: int, note: str = "") -> None:
        self._progress.update(self._task, advance=done, note=note)


class _PlainBar:
    def __init__(self, console: Console, title: str, total: int | None, start: int) -> None:
        self._console, self._title, self._total, self._done = console, title, total, start
        self._last = time.monotonic()

    def advance(self, done: int, note: str = "") -> None:
        self._done += done
        now = time.monotonic()
        if now - self._last >= _PLAIN_LINE_EVERY_SECONDS:
            self._last = now
            of = f"/{self._total:,}" if self._total else ""
            self._console.print(f"{self._title}: {self._done:,}{of} {note}".rstrip(), markup=False)


class ConsoleReporter:
    """Writes to stderr, so that stdout stays free for results."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """One line for the user."""
        self._console.print(line, markup=False)

    @contextmanager
    def bar(self, title: str, total: int | None = None, start: int = 0) -> Iterator[Bar]:
        """A bar on a terminal; a line every ten seconds elsewhere."""
        if not self._console.is_terminal:
            yield _PlainBar(self._console, title, total, start)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield _RichBar(progress, title, total, start)
