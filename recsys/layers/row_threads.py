"""Splits the rows of a batch over threads, each doing whole operators on its own rows."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


def over_rows(work: Callable[[int, int], T], *, rows: int, chunk: int) -> list[T]:
    """``work(start, stop)`` over all ``rows``, one stretch per torch thread; results in row order.

    Stretches begin at multiples of ``chunk``, so work that goes on by chunks sees the same chunks
    with any number of threads. Torch's own threads split every operator, which on chunks that fit
    a cache costs more in hand-overs than it saves; here each thread runs the operators alone.
    ``work`` must leave the interpreter lock (compiled TorchScript does), or nothing is gained.
    """
    threads = torch.get_num_threads()
    length = max(1, -(-rows // (chunk * threads))) * chunk
    starts = range(0, rows, length)
    if len(starts) <= 1:
        return [work(start, rows) for start in starts]
    inference = torch.is_inference_mode_enabled()  # a property of a thread

    def stretch(start: int) -> T:
        with torch.inference_mode(inference):
            return work(start, min(start + length, rows))

    torch.set_num_threads(1)
    try:
        futures = [_pool(threads - 1).submit(stretch, start) for start in starts[1:]]
        try:
            first = stretch(0)
        finally:
            for future in futures:  # none may still write when the caller goes on
                future.exception()
        return [first, *(future.result() for future in futures)]
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # The number of threads inside a torch operator is a property of the calling thread.
    return ThreadPoolExecutor(threads, "rows", initializer=torch.set_num_threads, initargs=(1,))


# The threads of a pool do not live on in a forked child.
os.register_at_fork(after_in_child=_pool.cache_clear)
