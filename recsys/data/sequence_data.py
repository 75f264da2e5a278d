"""Encoded item sequences: made once, then cut into training windows by index arithmetic."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from recsys.data.sequence_cache import FORMAT, Sequences, read_sequences, write_encoded
from recsys.features import Features
from recsys.types import Batch, InputError, Target
from serving.encode import MAX_CELLS
from serving.parquet import Source

SHUFFLE_ROWS = 2**20
"""Rows that are shuffled together, in blocks of a 32nd of it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How long sequences are cut for training.

    A sequence of ``n`` items has windows of ``length`` items that start at ``n - length``,
    ``n - length - stride``, ... as long as that is above 0, and at 0: the last one ends at the last
    item, every item is in one. Sequences of up to ``length`` items are one window, those below
    ``least`` items none (BERT4Rec learns from one item, next-item losses from two).
    """

    length: int
    stride: int
    least: int = 1

    def __post_init__(self) -> None:
        assert 1 <= self.stride <= self.length, "a stride above the length would skip items"
        assert 1 <= self.least <= self.length

    def counts(self, lengths: np.ndarray) -> np.ndarray:
        """Windows of sequences of these lengths, (N,) int64."""
        beyond = np.maximum(lengths - self.length, 0)
        return np.where(lengths >= self.least, 1 + -(-beyond // self.stride), 0)


def sequence_data(
    source: Source,
    features: Features,
    cache_dir: str | os.PathLike[str],
    *,
    windows: Windows | None,
    progress: Callable[[int], None] | None = None,
) -> SequenceData:
    """Sequences of ``source`` as encoded ids, from a folder in ``cache_dir``.

    ``windows``: training rows, the windows of each sequence; ``None``: one row a sequence, judged
    by its ``target``. The cache does not depend on the windows; it is keyed by the data and the
    features, complete or not there, and reused. Errors: `InputError` for columns that are missing
    or of another type than in training, for a null target, for no window at all, and for a full
    disk.
    """
    key = _digest(FORMAT, source.fingerprint, features.fingerprint, windows is None)
    folder = Path(cache_dir) / f"{key[:32]}.sequences"
    found, verb = read_sequences(folder, key), "reused"
    if found is None:
        write_encoded(folder, key, source, features, windows is None, progress)
        found, verb = read_sequences(folder, key), "written"
    assert found is not None
    _log.info("encoded sequences %s: %s (%d)", verb, folder, len(found.ends))
    data = SequenceData(folder, key, found, windows)
    if windows is not None and len(data) == 0:
        raise InputError(
            f"{source.files[0]}: no sequence has {windows.least} items, which the model needs to "
            "learn from; use a log with longer sequences"
        )
    return data


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class SequenceData:
    """Rows of encoded sequences: windows of them, or whole ones with their targets.

    Memory: 8 bytes a sequence for windows; the sequences themselves stay on disk.
    """

    def __init__(self, path: Path, key: str, data: Sequences, windows: Windows | None) -> None:
        self.path = path
        self.fingerprint = key
        self._data = data
        self._windows = windows
        self._rows = len(data.ends)
        if windows is not None:
            self._last = np.cumsum(windows.counts(np.diff(data.ends, prepend=0)))  # (sequences,)
            self._rows = int(self._last[-1]) if len(self._last) else 0
            self.fingerprint = _digest(key, windows.length, windows.stride, windows.least)

    def __len__(self) -> int:
        return self._rows

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> Iterator[tuple[Batch, Target]]:
        """Every row once, in ``ceil(len / batch_size)`` batches; the last one may be smaller.

        ``shuffle``: by ``(seed, epoch)`` alone; rows inside one batch are in the order of the file.
        ``start``: batches to skip, so that a resumed epoch continues exactly.
        ``Batch``: ``lists[0]`` (B, L) int64 encoded items, oldest first, padded with 0 to the
        longest of the batch; ``lengths`` (B, 1) int64; ``ids`` (B, 0), ``floats`` (B, 0).
        ``Target``: ``label`` (B,) int64, the encoded target (0 in training); ``weight`` ones;
        ``group`` (B,) int64, the number of the row.
        """
        left = np.empty(0, np.int64)
        for rows in self._order(shuffle, seed, epoch, start * batch_size):
            left = np.concatenate((left, rows))
            full = len(left) - len(left) % batch_size
            for first in range(0, full, batch_size):
                yield self._gather(np.sort(left[first : first + batch_size]))
            left = left[full:]
        if len(left):
            yield self._gather(np.sort(left))

    def _order(self, shuffle: bool, seed: int, epoch: int, skip: int) -> Iterator[np.ndarray]:
        """Row numbers of the epoch, some at a time, without the first ``skip``."""
        block = SHUFFLE_ROWS // 32
        blocks = np.arange(-(-self._rows // block))
        if shuffle:
            blocks = np.random.default_rng([seed, epoch]).permutation(blocks)
        for part, first in enumerate(range(0, len(blocks), 32)):
            chosen = blocks[first : first + 32, None] * block + np.arange(block)
            rows = chosen[chosen < self._rows]
            if skip < len(rows):
                if shuffle:
                    rows = np.random.default_rng([seed, epoch, 1 + part]).permutation(rows)
                yield rows[skip:]
            skip = max(skip - len(rows), 0)

    def _gather(self, rows: np.ndarray) -> tuple[Batch, Target]:
        first, end = self._bounds(rows)
        lengths = end - first
        width = int(lengths.max(initial=0))
        if width * len(rows) > MAX_CELLS:
            raise InputError(
                f"{self.path}: the longest sequence of this batch has {width} items, too many to "
                f"pad {len(rows)} rows to; use smaller batches"
            )
        items = np.zeros((len(rows), width), np.int64)
        offsets = np.cumsum(lengths) - lengths
        place = np.repeat(first - offsets, lengths) + np.arange(int(lengths.sum()))
        items[np.arange(width) < lengths[:, None]] = self._data.values[place]
        judged = self._windows is None
        label = self._data.targets[rows].astype(np.int64) if judged else np.zeros_like(rows)
        batch = Batch(
            torch.empty(len(rows), 0, dtype=torch.int64),
            torch.empty(len(rows), 0),
            [torch.from_numpy(items)],
            torch.from_numpy(lengths[:, None]),
        )
        return batch, Target(torch.from_numpy(label), torch.ones(len(rows)), torch.from_numpy(rows))

    def _bounds(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the items of each row are in the values: first and end (B,) int64."""
        if self._windows is None:
            sequence = rows
        else:
            sequence = np.searchsorted(self._last, rows, side="right")
        end = self._data.ends[sequence]
        first = np.where(sequence > 0, self._data.ends[sequence - 1], 0)
        if self._windows is None:
            return first, end
        later = self._last[sequence] - 1 - rows  # windows of the same sequence after this one
        length = self._windows.length
        first = np.maximum(first, end - length - later * self._windows.stride)
        return first, np.minimum(first + length, end)
