"""The perfect hash table behind vocabularies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.hashing import reduce_ids, splitmix64_np
from recsys.features.lookup import HashLookup, OpenIds, VocabularyLookup
from recsys.types import NULL_ID

INT64 = st.integers(-(2**63) + 1, 2**63 - 1)


@settings(deadline=None)
@given(st.lists(INT64, unique=True, max_size=60), st.lists(INT64, max_size=20))
def test_known_ids_have_their_place_and_others_do_not(ids: list[int], others: list[int]) -> None:
    lookup = VocabularyLookup(ids=np.array(ids, dtype=np.int64), oov_ids=1)
    place = {id_: 2 + i for i, id_ in enumerate(ids)} | {NULL_ID: 0}
    asked = [*ids, *others, NULL_ID, 0, -1, 2**63 - 1]
    assert lookup(torch.tensor(asked)).tolist() == [place.get(id_, 1) for id_ in asked]


@pytest.mark.parametrize("step", [1, 64, 2**32, 2**33 + 1])
def test_large_and_regular_vocabularies(step: int) -> None:
    ids = np.arange(1, 20_001, dtype=np.int64) * step
    lookup = VocabularyLookup(ids=ids, oov_ids=1)
    assert torch.equal(lookup(torch.from_numpy(ids)), torch.arange(2, 20_002))
    assert lookup(torch.from_numpy(ids + step * 20_000)).eq(1).all()


def test_table_does_not_depend_on_the_order_of_building() -> None:
    ids = np.arange(500, dtype=np.int64) * 977
    a = VocabularyLookup(ids=ids, oov_ids=1)
    b = VocabularyLookup(ids=ids[::-1].copy(), oov_ids=1)
    assert torch.equal(a.keys, b.keys)
    assert torch.equal(a.displacements, b.displacements)


def test_unseen_ids_spread_over_all_oov_ids() -> None:
    lookup = VocabularyLookup(ids=np.array([7, 8]), oov_ids=4)
    unseen = torch.arange(100, 1100)
    got = lookup(unseen)
    assert torch.equal(got, 1 + reduce_ids(unseen, 0, 4))
    assert torch.bincount(got, minlength=5)[1:].min() > 200  # 250 expected, 5 sigma is 68
    assert lookup(torch.tensor([7, 8, NULL_ID])).tolist() == [5, 6, 0]


def test_hash_lookup_keeps_null_apart() -> None:
    lookup = HashLookup(salt=99, buckets=10)
    ids = torch.arange(1000)
    assert torch.equal(lookup(ids), 1 + reduce_ids(ids, 99, 10))
    assert lookup(torch.tensor([NULL_ID])).tolist() == [0]
    assert set(lookup(ids).tolist()) == set(range(1, 11))


def test_open_ids_pass_through() -> None:
    ids = torch.tensor([NULL_ID, -5, 2**63 - 1])
    assert torch.equal(OpenIds()(ids), ids)


def test_ids_that_no_displacement_parts_get_another_seed() -> None:
    # Hashes that agree in the bucket (high half below 2**31, two buckets) and in all low bits.
    ids = np.array([unmix(0x00000001_12345678), unmix(0x00000002_12345678)])
    assert [hex(h) for h in splitmix64_np(ids)] == ["0x112345678", "0x212345678"]
    lookup = VocabularyLookup(ids=ids, oov_ids=1)
    assert lookup.seed == 1
    assert lookup(torch.tensor([*ids, NULL_ID, 5])).tolist() == [2, 3, 0, 1]


def unmix(h: int) -> int:
    """The inverse of splitmix64, by undoing each step."""
    mask = 2**64 - 1
    h ^= h >> 31 ^ h >> 62
    h = h * pow(0x94D049BB133111EB, -1, 2**64) & mask
    h ^= h >> 27 ^ h >> 54
    h = h * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
    h ^= h >> 30 ^ h >> 60
    x = (h - 0x9E3779B97F4A7C15) & mask
    return x - 2**64 if x >= 2**63 else x
