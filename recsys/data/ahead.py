"""Run an iterator one step ahead, in a thread."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Generator[T, None, None]:
    """The same items in the same order, the next one being made while the last one is used.

    Pays where making and using release the interpreter lock (decoding, hashing, gathering,
    writing). At most two items wait. An exception in ``items`` is raised here, in its turn;
    closing this generator stops the thread.
    """
    queue: Queue[tuple[T] | BaseException | None] = Queue(maxsize=1)
    stopped = Event()

    def put(item: tuple[T] | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def run() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:  # handed over to the consumer, whatever it is
            put(error)

    thread = Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        while (got := queue.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got[0]
    finally:
        stopped.set()
        while True:
            try:
                queue.get_nowait()
            except Empty:
                break
        thread.join()
