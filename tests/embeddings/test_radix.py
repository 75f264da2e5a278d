"""Digits of ids: a permutation first, integers only, exact beyond 2^31."""

from __future__ import annotations

import numpy as np
import torch
from embedding_cases import config
from hypothesis import given
from hypothesis import strategies as st

from recsys.embeddings.quotient_remainder import QuotientRemainder
from recsys.embeddings.radix import RadixRows, spread_multiplier
from recsys.types import FieldSpec


@given(st.integers(1, 2**61))
def test_the_multiplier_permutes_without_overflow(n: int) -> None:
    a = spread_multiplier(n)
    assert a % 2 == 1
    assert np.gcd(a, n) == 1
    assert a * (n - 1) < 2**63


@given(st.integers(2, 3000))
def test_the_permutation_is_one(n: int) -> None:
    assert len({spread_multiplier(n) * x % n for x in range(n)}) == n


@given(
    n=st.sampled_from([2**31 + 10, 2**24 + 3, 10**12 + 39, 2**40]),
    m=st.integers(2, 10**6),
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(2, 3),
)
def test_rows_are_exact_for_huge_ids(n: int, m: int, seed: int, k: int) -> None:
    """The index arithmetic alone, against Python's integers."""
    tree = {"method": "quotient_remainder", "m": m, "partitions": k}
    field = (FieldSpec("id", "categorical", num_ids=n),)
    plan = QuotientRemainder(config(tree), field, {"main": 16})
    ids = [0, 1, n - 1, n - 2, *np.random.default_rng(seed).integers(0, n, 20).tolist()]
    rows = torch.jit.script(plan.row_map())(torch.tensor(ids).unsqueeze(1), 0).tolist()
    k = k if m ** (k - 1) < n else 2
    a, top = spread_multiplier(n), -(-n // m ** (k - 1))
    for x, got in zip(ids, rows, strict=True):
        y = a * x % n
        expected = [m * t + y // m**t % m for t in range(k - 1)] + [m * (k - 1) + y // m ** (k - 1)]
        assert got == expected
        assert got[-1] < m * (k - 1) + top


def test_float_division_would_be_wrong() -> None:
    """The quotient that a float32 division gives, and ours."""
    x = 2**31 + 7
    arguments = {"sizes": [2**31 + 10], "strides": [1], "offsets": [0], "multipliers": [1]}
    rows = RadixRows(counts=[1], singles=1, divisors=[10], radices=[2**62], **arguments)
    assert int(rows(torch.tensor([[x]]), 0)) == x // 10 == 214_748_365
    assert int((torch.tensor([x]) / 10).floor()) == 214_748_368
