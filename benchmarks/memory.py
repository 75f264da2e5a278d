"""Peak memory: of this process, or of one and everything it started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import psutil


class PeakMemory:
    """Calls ``look`` every few moments until the block ends; ``bytes`` is the highest answer."""

    def __init__(self, look: Callable[[], int], *, every: float = 0.2) -> None:
        self.bytes = 0
        self._look = look
        self._every = every
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self.bytes = max(self.bytes, self._look())


def tree_bytes(root: psutil.Process) -> int:
    """Memory of a process tree now.

    Counted is the proportional set size: a page shared by k processes counts 1/k in each, so that
    workers that share pages (Ray's object store) are not counted twice.
    """
    total = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended between the listing and the look
    return total


def anonymous_bytes() -> int:
    """Bytes of this process that are backed by no file."""
    with open("/proc/self/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024
