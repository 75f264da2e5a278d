"""Raw 64-bit ids -> encoded ids: scriptable modules over (N,) int64.

A vocabulary is a perfect hash table built by *hash and displace* (Pagh 1999; Belazzougui, Botelho,
Dietzfelbinger 2009): every id belongs to a small bucket, every bucket has one displacement that
sends its ids to slots of their own. A look-up reads one displacement, one key and one value,
whatever the size, in 16 bytes an id; binary search in sorted ids (12 bytes an id) takes about
log2(V) dependent reads: about five times as long at 60 k ids.
"""

from typing import NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor, nn

from recsys.features.hashing import reduce_ids, splitmix64, splitmix64_np
from recsys.types import NULL_ID

# Chosen by measurement: 1.15 and 4 take 14.3 bytes an id but four times as long to build.
_SLOTS_PER_ID = 1.25
_IDS_PER_BUCKET = 2
_MAX_DISPLACEMENT = 1 << 15
_LOW = 0xFFFFFFFF


class VocabularyLookup(nn.Module):
    """Exact ids by a perfect hash table; unseen ids are spread over the OOV ids.

    Args:
        ids: (V,) distinct int64 ids without `NULL_ID`; ``ids[i]`` becomes ``1 + oov_ids + i``.
        oov_ids: number of ids that unseen ids share.
    """

    displacements: Tensor
    keys: Tensor
    values: Tensor

    def __init__(self, *, ids: np.ndarray, oov_ids: int) -> None:
        super().__init__()
        # Null is an entry like any other; it also fills the empty slots, where it is as right.
        table = _build(
            np.append(ids, NULL_ID).astype(np.int64),
            np.append(np.arange(1 + oov_ids, 1 + oov_ids + len(ids)), 0).astype(np.int32),
        )
        self.seed: int = table.seed
        self.buckets: int = len(table.displacements)
        self.slots: int = len(table.keys)
        self.oov_ids: int = oov_ids
        self.register_buffer("displacements", torch.from_numpy(table.displacements))
        self.register_buffer("keys", torch.from_numpy(table.keys))
        self.register_buffer("values", torch.from_numpy(table.values))

    def forward(self, ids: Tensor) -> Tensor:  # (N,) int64 -> (N,) int64
        h = splitmix64(ids + self.seed)
        bucket = (((h >> 32) & 0xFFFFFFFF) * self.buckets) >> 32
        odd = self.displacements.index_select(0, bucket).long() * 2 + 1
        slot = ((((h & 0xFFFFFFFF) * odd) & 0xFFFFFFFF) * self.slots) >> 32
        known = self.keys.index_select(0, slot) == ids
        value = self.values.index_select(0, slot).long()
        if self.oov_ids == 1:
            return torch.where(known, value, 1)
        return torch.where(known, value, 1 + reduce_ids(ids, 0, self.oov_ids))


class HashLookup(nn.Module):
    """Ids hashed into ``1 .. buckets``; null is 0."""

    def __init__(self, *, salt: int, buckets: int) -> None:
        super().__init__()
        self.salt: int = salt
        self.buckets: int = buckets
        self.null: int = NULL_ID

    def forward(self, ids: Tensor) -> Tensor:  # (N,) int64 -> (N,) int64
        return torch.where(ids == self.null, 0, 1 + reduce_ids(ids, self.salt, self.buckets))


class OpenIds(nn.Module):
    """Ids as they are: the table hashes them, and knows null by `NULL_ID`."""

    def forward(self, ids: Tensor) -> Tensor:  # (N,) int64 -> (N,) int64
        return ids


class _Table(NamedTuple):
    seed: int
    displacements: np.ndarray  # (buckets,) int16
    keys: np.ndarray  # (slots,) int64
    values: np.ndarray  # (slots,) int32


def _build(keys: np.ndarray, values: np.ndarray) -> _Table:
    """A table for distinct keys. Two keys of one bucket with the same low hash bits cannot be
    told apart by a displacement; the next seed parts them (the first fails for about one in 400
    tables of 10 M ids)."""
    for seed in range(64):
        table = _try_build(keys, values, seed)
        if table is not None:
            return table
    raise AssertionError("no perfect hash in 64 seeds: the keys are not distinct")


def _try_build(keys: np.ndarray, values: np.ndarray, seed: int) -> Optional[_Table]:
    slots = int(len(keys) * _SLOTS_PER_ID) + 1
    buckets = len(keys) // _IDS_PER_BUCKET + 1
    assert slots < 1 << 31, "slots are multiplied with 32-bit hashes in int64"
    h = splitmix64_np(keys + np.int64(seed))
    bucket = (((h >> 32) & _LOW) * buckets) >> 32
    low = h & _LOW
    order = np.lexsort((low, bucket))  # also makes the table independent of the order of the keys
    sizes = np.bincount(bucket, minlength=buckets)
    starts = np.cumsum(sizes) - sizes
    low = low[order]
    if np.any((np.diff(low) == 0) & (np.diff(bucket[order]) == 0)):
        return None

    displacements = np.zeros(buckets, dtype=np.int16)
    owner = np.full(slots, -1, dtype=np.int64)  # position in `order` of the key in a slot
    for size in range(int(sizes.max()), 0, -1):  # full buckets first, while there is room
        left = np.flatnonzero(sizes == size)
        first = 0
        while len(left) > 0:
            if first >= _MAX_DISPLACEMENT:
                return None
            # Few buckets left: try several displacements of each at once.
            tries = min(max(1, 4096 // (len(left) * size)), _MAX_DISPLACEMENT - first)
            members = starts[left][:, None] + np.arange(size)  # (b, size)
            odd = 2 * np.arange(first, first + tries, dtype=np.int64) + 1
            place = (((low[members][:, None, :] * odd[:, None]) & _LOW) * slots) >> 32
            good = (owner[place] < 0).all(axis=2) & _distinct(place)  # (b, tries)
            some = np.flatnonzero(good.any(axis=1))
            chosen = good[some].argmax(axis=1)
            place = place[some, chosen]
            # Buckets that want the same slot: the first one gets it, the others try on.
            owner[place[::-1]] = members[some][::-1]
            won = (owner[place] == members[some]).all(axis=1)
            lost = place[~won][owner[place[~won]] == members[some][~won]]
            owner[lost] = -1
            displacements[left[some[won]]] = first + chosen[won]
            left = np.delete(left, some[won])
            first += tries
    table_keys = np.full(slots, NULL_ID, dtype=np.int64)
    table_values = np.zeros(slots, dtype=np.int32)
    taken = owner >= 0
    table_keys[taken] = keys[order[owner[taken]]]
    table_values[taken] = values[order[owner[taken]]]
    return _Table(seed, displacements, table_keys, table_values)


def _distinct(place: np.ndarray) -> np.ndarray:
    """(b, tries, size) slots -> (b, tries): are the slots of a bucket different?"""
    ordered = np.sort(place, axis=2)
    return (ordered[:, :, 1:] != ordered[:, :, :-1]).all(axis=2)
