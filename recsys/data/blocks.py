"""The encoded cache file: Arrow IPC, uncompressed, read through a memory map.

Record batches ("blocks") of exactly `BLOCK_ROWS` rows, the last one shorter. Columns:
``ids`` fixed_size_list<int32 or int64>[S], ``floats`` fixed_size_list<float32>[K] (left out if S
or K is 0), ``list_f`` list<fixed_size_list[T_f]> for each list field, ``label`` and ``weight``
float32, ``group`` int64. The schema's metadata holds the key, the shape and the row count; the
footer comes last, so a file cut short cannot be opened.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from recsys.data.rows import Ragged, Rows

FORMAT = 1
BLOCK_ROWS = 32_768
_META = b"recsys.encoded"


@dataclass(frozen=True)
class Layout:
    """What one file holds.

    ``key``: digest of the data and of every rule that made the rows; ``rows`` in all; ``slots`` S;
    ``width`` K; ``index``: ``int32`` or ``int64``; ``padding``: for each list field the T_f row
    indices of padding.
    """

    key: str
    rows: int
    slots: int
    width: int
    index: str
    padding: tuple[tuple[int, ...], ...]

    def schema(self) -> pa.Schema:
        """Arrow schema with the layout as metadata."""
        index = pa.from_numpy_dtype(self.index)
        fields = [("ids", pa.list_(index, self.slots))] if self.slots else []
        fields += [("floats", pa.list_(pa.float32(), self.width))] if self.width else []
        fields += [
            (f"list_{f}", pa.list_(pa.list_(index, len(pad)))) for f, pad in enumerate(self.padding)
        ]
        fields += [("label", pa.float32()), ("weight", pa.float32()), ("group", pa.int64())]
        return pa.schema(fields, metadata={_META: json.dumps(asdict(self))})


@dataclass(frozen=True)
class Judged:
    """Encoded rows with their targets: ``label`` (n,), ``weight`` (n,), ``group`` (n,)."""

    rows: Rows
    label: np.ndarray
    weight: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


class BlockWriter:
    """Writes a cache file; it appears at ``path`` complete, or not at all.

    A context manager: leaving it normally syncs and renames, an exception removes the temporary
    file. A killed process leaves only a hidden temporary file, which is never read.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._schema = layout.schema()
        self._waiting: list[Judged] = []
        self._count = 0
        self._written = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")

    def __enter__(self) -> Self:
        self._sink = open(self._temporary, "xb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        return self

    def add(self, rows: Judged) -> None:
        """Appends rows, with row indices of the layout's type."""
        self._waiting.append(rows)
        self._count += len(rows)
        while self._count >= BLOCK_ROWS:
            self._write_block(BLOCK_ROWS)

    def _write_block(self, n: int) -> None:
        """Writes the first ``n`` waiting rows as one record batch."""
        taken: list[Judged] = []
        missing = n
        while missing:
            head = self._waiting.pop(0)
            if len(head) > missing:
                head, rest = _cut(head, missing)
                self._waiting.insert(0, rest)
            taken.append(head)
            missing -= len(head)
        self._count -= n
        self._written += n
        self._writer.write_batch(self._record_batch(taken))

    def _record_batch(self, parts: Sequence[Judged]) -> pa.RecordBatch:
        arrays: list[pa.Array] = []
        if self._layout.slots:
            arrays.append(_fixed([part.rows.ids for part in parts]))
        if self._layout.width:
            arrays.append(_fixed([part.rows.floats for part in parts]))
        for f in range(len(self._layout.padding)):
            lists = [part.rows.lists[f] for part in parts]
            values = _fixed([one.values for one in lists])
            ends = np.cumsum(np.concatenate([one.lengths for one in lists]))
            offsets = np.concatenate(([0], ends)).astype(np.int32)
            arrays.append(pa.ListArray.from_arrays(pa.array(offsets), values))
        for name in ("label", "weight", "group"):
            arrays.append(pa.array(np.concatenate([getattr(part, name) for part in parts])))
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                if self._count:
                    self._write_block(self._count)
                assert self._written == self._layout.rows, "the source gave another number of rows"
                self._writer.close()
                self._sink.flush()
                os.fsync(self._sink.fileno())
                self._sink.close()
                os.replace(self._temporary, self._path)
        finally:
            self._sink.close()
            self._temporary.unlink(missing_ok=True)


def _fixed(parts: Sequence[np.ndarray]) -> pa.Array:
    """(n, width) arrays, one below the other, as a fixed-size-list array."""
    joined = np.concatenate(parts)
    return pa.FixedSizeListArray.from_arrays(pa.array(joined.reshape(-1)), joined.shape[1])


def _cut(rows: Judged, n: int) -> tuple[Judged, Judged]:
    """The first ``n`` rows, and the rest."""
    heads, tails = [], []
    for values, lengths in rows.rows.lists:
        elements = int(lengths[:n].sum())
        heads.append(Ragged(values[:elements], lengths[:n]))
        tails.append(Ragged(values[elements:], lengths[n:]))
    ids, floats = rows.rows.ids, rows.rows.floats
    return (
        Judged(Rows(ids[:n], floats[:n], heads), rows.label[:n], rows.weight[:n], rows.group[:n]),
        Judged(Rows(ids[n:], floats[n:], tails), rows.label[n:], rows.weight[n:], rows.group[n:]),
    )


@dataclass(frozen=True)
class Block:
    """One record batch of a cache file as views of the memory map.

    ``lists[f]`` is ``(values (elements, T_f), offsets (n + 1,) int32)``.
    """

    ids: np.ndarray
    floats: np.ndarray
    lists: list[tuple[np.ndarray, np.ndarray]]
    label: np.ndarray
    weight: np.ndarray
    group: np.ndarray


def read_layout(path: Path) -> Layout | None:
    """The layout of a complete cache file of this format; None for anything else."""
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
            meta = json.loads((reader.schema.metadata or {})[_META])
            layout = Layout(**{**meta, "padding": tuple(map(tuple, meta["padding"]))})
            blocks = reader.num_record_batches
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return layout if blocks == -(-layout.rows // BLOCK_ROWS) else None


def read_blocks(path: Path, layout: Layout) -> list[Block]:
    """All blocks; nothing is loaded before it is used."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [_block(reader.get_batch(i), layout) for i in range(reader.num_record_batches)]


def _block(batch: pa.RecordBatch, layout: Layout) -> Block:
    n = batch.num_rows
    ids, floats = np.empty((n, 0), layout.index), np.empty((n, 0), np.float32)
    if layout.slots:
        ids = batch.column("ids").values.to_numpy().reshape(n, layout.slots)
    if layout.width:
        floats = batch.column("floats").values.to_numpy().reshape(n, layout.width)
    lists = []
    for f, pad in enumerate(layout.padding):
        column = batch.column(f"list_{f}")
        values = column.values.values.to_numpy().reshape(-1, len(pad))
        lists.append((values, column.offsets.to_numpy()))
    label, weight, group = (batch.column(c).to_numpy() for c in ("label", "weight", "group"))
    return Block(ids, floats, lists, label, weight, group)
