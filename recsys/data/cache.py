"""Encoded data: rows of tables on disk, made once, then read at memory speed by every epoch."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from recsys.data.ahead import ahead
from recsys.data.blocks import (
    BLOCK_ROWS,
    FORMAT,
    Block,
    BlockWriter,
    Judged,
    Layout,
    read_blocks,
    read_layout,
)
from recsys.data.rows import RowEncoder, RowIndexTooLarge
from recsys.data.targets import groups, labels, target_columns, weights
from recsys.embeddings.id_map import IdMap
from recsys.features import Features
from recsys.settings import DataConfig
from recsys.types import Batch, InputError, Target
from serving.encode import MAX_CELLS, check_schema
from serving.parquet import Source

BATCH_ROWS = 32_768
WINDOW_BLOCKS = 32
"""Blocks that are shuffled together: about a million rows."""
_PARTED = 0x9A27ED  # keeps the draw of `parted` apart from those of the order of rows

_log = logging.getLogger(__name__)


def encoded(
    source: Source,
    features: Features,
    id_map: IdMap,
    config: DataConfig,
    cache_dir: str | os.PathLike[str],
    progress: Callable[[int], None] | None = None,
) -> EncodedData:
    """Rows of ``source`` as the tables take them, from a file in ``cache_dir``.

    The file's name is a digest of the data, the fitted features, the id map, the special columns
    and the format: a complete file of that name is reused (and said so in the log), anything else
    is written anew, atomically. Files in ``cache_dir`` may be deleted at any time between runs.
    ``progress`` is called with the number of rows of each batch. Raises `InputError` for columns
    that are missing or of another type than in training, bad labels and weights, unreadable files
    and a full disk.
    """
    key = _key(source, features, id_map, config)
    path = Path(cache_dir) / f"{key[:32]}.arrow"
    found = read_layout(path)
    if found is not None and found.key == key and found.rows == source.num_rows:
        _log.info("encoded cache reused: %s (%d rows)", path, found.rows)
        return EncodedData(path, found)
    check_schema(source.schema, features.inputs, source.files[0])
    try:
        try:
            layout = _write(path, key, "int32", source, features, id_map, config, progress)
        except RowIndexTooLarge:
            layout = _write(path, key, "int64", source, features, id_map, config, progress)
    except OSError as error:
        raise InputError(
            f"cannot write the encoded cache {path}: {error.strerror or error}; free the disk or "
            "choose another cache folder"
        ) from None
    _log.info("encoded cache written: %s (%d rows)", path, layout.rows)
    return EncodedData(path, layout)


def _key(source: Source, features: Features, id_map: IdMap, config: DataConfig) -> str:
    special = [config.label, config.weight, config.group]
    rules = [FORMAT, source.fingerprint, features.fingerprint, id_map.fingerprint, special]
    return hashlib.sha256(json.dumps(rules).encode()).hexdigest()


def _write(
    path: Path,
    key: str,
    index: str,
    source: Source,
    features: Features,
    id_map: IdMap,
    config: DataConfig,
    progress: Callable[[int], None] | None,
) -> Layout:
    """Decodes, encodes and writes, each in its own thread."""
    encoder = RowEncoder(features, id_map, index)
    padding = tuple(tuple(pad.tolist()) for pad in encoder.padding)
    empty = encoder(_no_rows(source, encoder.columns))
    slots, width = empty.ids.shape[1], empty.floats.shape[1]
    layout = Layout(key, source.num_rows, slots, width, index, padding)
    with (
        BlockWriter(path, layout) as writer,
        closing(ahead(_judged(encoder, source, config))) as stream,
    ):
        for rows in stream:
            writer.add(rows)
            if progress is not None:
                progress(len(rows))
    return layout


def _no_rows(source: Source, columns: list[str]) -> pa.RecordBatch:
    fields = [source.schema.field(name) for name in columns]
    return pa.RecordBatch.from_pylist([], schema=pa.schema(fields))


def _judged(
    encoder: RowEncoder, source: Source, config: DataConfig
) -> Generator[Judged, None, None]:
    columns = list(dict.fromkeys([*encoder.columns, *target_columns(config)]))
    first = 0
    with closing(ahead(source.batches(columns, BATCH_ROWS, dictionary=columns))) as batches:
        for batch in batches:
            label = labels(batch, config, source, first)
            weight = weights(batch, config, source, first)
            yield Judged(encoder(batch), label, weight, groups(batch, config))
            first += batch.num_rows


class EncodedData:
    """Rows of one part of the data, at the rows stage, in a memory-mapped file.

    ``chosen``: (rows,) bool, the rows of the file that belong to this part; ``None``: all.
    """

    def __init__(self, path: Path, layout: Layout, chosen: np.ndarray | None = None) -> None:
        self.path = path
        self.fingerprint = layout.key
        self._layout = layout
        self._blocks = read_blocks(path, layout)
        self._chosen = chosen
        if chosen is not None:
            self.fingerprint += hashlib.sha256(np.packbits(chosen).tobytes()).hexdigest()

    def __len__(self) -> int:
        return self._layout.rows if self._chosen is None else int(self._chosen.sum())

    def parted(self, share: float, *, seed: int) -> tuple[EncodedData, EncodedData]:
        """The rows without a random ``share`` of them, and that share."""
        assert self._chosen is None, "parts are not parted again"
        second = np.random.default_rng([seed, _PARTED]).random(self._layout.rows) < share
        first = EncodedData(self.path, self._layout, ~second)
        return first, EncodedData(self.path, self._layout, second)

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

        ``shuffle``: blocks are permuted, and rows are permuted inside windows of 32 blocks (about
        a million rows), both by ``(seed, epoch)`` alone; rows inside one batch are in file order.
        ``start``: batches to skip, so that a resumed epoch continues exactly.
        Tensors are fresh: ``ids`` (B, S) int32 or int64, ``floats`` (B, K) float32, ``lists[f]``
        (B, L, T_f) with L the longest of the batch, ``lengths`` (B, lists) int64; see `Target`.
        """
        order = self._order(shuffle, seed, epoch, start * batch_size)
        left = np.empty(0, np.int64)
        for rows in order:
            left = np.concatenate((left, rows))
            full = len(left) - len(left) % batch_size
            for first in range(0, full, batch_size):
                yield self._gather(left[first : first + batch_size])
            left = left[full:]
        if len(left):
            yield self._gather(left)

    def _order(self, shuffle: bool, seed: int, epoch: int, skip: int) -> Iterator[np.ndarray]:
        """Row numbers of the epoch in windows, without the first ``skip``."""
        blocks = np.arange(len(self._blocks))
        if shuffle:
            blocks = np.random.default_rng([seed, epoch]).permutation(blocks)
        for window, first in enumerate(range(0, len(blocks), WINDOW_BLOCKS)):
            rows = np.concatenate(
                [
                    b * BLOCK_ROWS + np.arange(len(self._blocks[b].label))
                    for b in blocks[first : first + WINDOW_BLOCKS]
                ]
            )
            if self._chosen is not None:
                rows = rows[self._chosen[rows]]
            if skip >= len(rows):
                skip -= len(rows)
                continue
            if shuffle:
                rows = np.random.default_rng([seed, epoch, 1 + window]).permutation(rows)
            yield rows[skip:]
            skip = 0

    def _gather(self, rows: np.ndarray) -> tuple[Batch, Target]:
        rows = np.sort(rows)  # block by block; the order inside a batch means nothing
        bounds = np.flatnonzero(np.diff(rows // BLOCK_ROWS)) + 1
        pieces = [
            (self._blocks[part[0] // BLOCK_ROWS], part % BLOCK_ROWS)
            for part in np.split(rows, bounds)
        ]
        label, weight, group, ids, floats = (
            _take(pieces, name) for name in ("label", "weight", "group", "ids", "floats")
        )
        lists, lengths = [], np.empty((len(self._layout.padding), len(rows)), np.int64)
        for f, pad in enumerate(self._layout.padding):
            values, lengths[f] = _take_list(pieces, f, np.array(pad, self._layout.index))
            lists.append(torch.from_numpy(values))
        batch = Batch(ids, floats, lists, torch.from_numpy(np.ascontiguousarray(lengths.T)))
        return batch, Target(label, weight, group)


def _take(pieces: list[tuple[Block, np.ndarray]], name: str) -> torch.Tensor:
    """Rows of one column of all pieces, one below the other."""
    first: np.ndarray = getattr(pieces[0][0], name)
    out = np.empty((sum(len(local) for _, local in pieces), *first.shape[1:]), first.dtype)
    done = 0
    for block, local in pieces:
        # mode="clip" lets numpy write into `out` without a buffer; every index is valid.
        np.take(getattr(block, name), local, axis=0, out=out[done : done + len(local)], mode="clip")
        done += len(local)
    return torch.from_numpy(out)


def _take_list(
    pieces: list[tuple[Block, np.ndarray]], f: int, pad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``(values (B, L, T), lengths (B,))`` of list field ``f``, padded on the right."""
    starts = [block.lists[f][1][local].astype(np.int64) for block, local in pieces]
    ends = [block.lists[f][1][local + 1].astype(np.int64) for block, local in pieces]
    lengths = np.concatenate(ends) - np.concatenate(starts)
    longest = int(lengths.max(initial=0))
    if longest * len(lengths) * len(pad) > MAX_CELLS:
        raise InputError(
            f"a list of {longest:,} elements is too long to pad a batch of {len(lengths):,} rows "
            "to; set max_length of the list features, or train in smaller batches"
        )
    inside = np.arange(longest) < lengths[:, None]  # (B, L)
    out = np.empty((*inside.shape, len(pad)), pad.dtype)
    out[:] = pad
    elements = [
        np.take(
            block.lists[f][0],
            np.repeat(a - (np.cumsum(b - a) - (b - a)), b - a) + np.arange(int((b - a).sum())),
            axis=0,
        )
        for (block, _), a, b in zip(pieces, starts, ends, strict=True)
    ]
    out[inside] = np.concatenate(elements)
    return out, lengths
