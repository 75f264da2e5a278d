"""splitmix64 against the reference generator, in every form in which it runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.features.hashing import reduce_ids, reduce_ids_np, salt, splitmix64, splitmix64_np

INT64 = st.integers(-(2**63), 2**63 - 1)

# First outputs of https://prng.di.unimi.it/splitmix64.c for the seeds; the one of 1234567 is the
# widely published test vector.
GOLDEN = {
    0: 16294208416658607535,
    1: 10451216379200822465,
    1234567: 6457827717110365317,
    -1: 16490336266968443936,
    -(2**63): 5196802822362493915,
}


def reference(seed: int) -> int:
    """splitmix64.c, word for word, on Python integers; the result as a signed word."""
    mask = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    z ^= z >> 31
    return z - 2**64 if z >= 2**63 else z


def test_golden_vectors() -> None:
    seeds = list(GOLDEN)
    want = [value - 2**64 if value >= 2**63 else value for value in GOLDEN.values()]
    assert splitmix64(torch.tensor(seeds)).tolist() == want
    assert splitmix64_np(np.array(seeds)).tolist() == want


@given(st.lists(INT64, max_size=20))
def test_numpy_torch_and_script_give_the_reference_bits(seeds: list[int]) -> None:
    want = [reference(seed) for seed in seeds]
    x = torch.tensor(seeds, dtype=torch.int64)
    assert splitmix64(x).tolist() == want
    assert SCRIPTED(x).tolist() == want
    assert splitmix64_np(np.array(seeds, dtype=np.int64)).tolist() == want


SCRIPTED = torch.jit.script(splitmix64)


@given(st.lists(INT64, min_size=1, max_size=20), INT64, st.integers(1, 2**40))
def test_reduction_is_the_same_in_numpy_and_torch(ids: list[int], k: int, size: int) -> None:
    x = torch.tensor(ids)
    buckets = reduce_ids(x, k, size).tolist()
    assert buckets == reduce_ids_np(np.array(ids), k, size).tolist()
    for bucket, id_ in zip(buckets, ids, strict=True):
        wrapped = (id_ + k + 2**63) % 2**64 - 2**63
        assert bucket == (reference(wrapped) & (2**63 - 1)) % size


def test_structured_ids_spread_evenly() -> None:
    counts = np.bincount(reduce_ids_np(np.arange(100_000) * 64, salt("user"), 1000), minlength=1000)
    chi2 = ((counts - 100.0) ** 2 / 100.0).sum() / 999
    assert chi2 == pytest.approx(1.0, abs=0.15)


def test_salts_are_stable_and_differ() -> None:
    assert salt("user") == salt("user", 0) == -1517710345079604211
    assert salt("user", 1) == -8561137552770208476
    assert salt("item") == 9187163907543934683
