"""splitmix64 on int64: the one way in which ids are mixed, salted and reduced inside a graph.

``splitmix64(x)`` is the first output of Vigna's generator seeded with ``x``
(https://prng.di.unimi.it/splitmix64.c): ``x += 0x9E3779B97F4A7C15`` and the two-multiply finaliser.
It is a bijection of 64-bit words. Torch has no unsigned 64-bit arithmetic, so words are int64 in
two's complement, products wrap, and logical right shifts are an arithmetic shift and a mask; the
numpy twin works on uint64, and both give the same bits, as do eager torch and TorchScript.

Reduction to ``[0, n)``: ``(splitmix64(id + salt) & (2**63 - 1)) % n``, with a bias below
``n / 2**63``.
"""

from __future__ import annotations

import hashlib

import numpy as np
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB


def splitmix64(x: Tensor) -> Tensor:
    """int64 words of any shape -> mixed int64 words of the same shape. Scriptable."""
    # The literals are _GAMMA, _MULTIPLY_1 and _MULTIPLY_2 as signed words: TorchScript takes no
    # global numbers and no literal above 2**63.
    z = x + -7046029254386353131
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def reduce_ids(ids: Tensor, salt: int, size: int) -> Tensor:
    """int64 ids of any shape -> buckets in ``[0, size)``, decided by ``salt``. Scriptable."""
    return (splitmix64(ids + salt) & 0x7FFFFFFFFFFFFFFF) % size


def splitmix64_np(x: np.ndarray) -> np.ndarray:
    """The numpy twin of `splitmix64`: int64 in, int64 out, the same bits."""
    z = np.ascontiguousarray(x, dtype=np.int64).view(np.uint64) + np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MULTIPLY_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MULTIPLY_2)
    return (z ^ (z >> np.uint64(31))).view(np.int64)


def reduce_ids_np(ids: np.ndarray, salt: int, size: int) -> np.ndarray:
    """The numpy twin of `reduce_ids`."""
    salted = ids.astype(np.int64) + np.int64(salt)
    return (splitmix64_np(salted) & np.int64(2**63 - 1)) % np.int64(size)


def salt(name: str, k: int = 0) -> int:
    """The ``k``-th salt of a field: a signed 64-bit number, the first 8 bytes (little endian) of
    SHA-256 of ``"<name>\\x1f<k>"``. Fields and lookups get unrelated salts; renaming a field
    changes its salt.
    """
    digest = hashlib.sha256(f"{name}\x1f{k}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)
