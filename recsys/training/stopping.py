"""Stopping on request: the present step is finished and saved; the same command goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(RuntimeError):
    """Training was asked to stop and has saved a checkpoint; the same command goes on."""


class StopRequest:
    """``asked`` turns true at the first SIGINT or SIGTERM while `listening`."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A second SIGINT stops at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked:
                signal.default_int_handler(number, frame)
            self.asked = True

        try:
            before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # signals belong to the main thread; elsewhere there is nothing to catch
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
