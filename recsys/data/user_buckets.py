"""An interaction log cut into buckets of users, so that each can be put in order in memory.

One temporary Arrow file: the log is read in runs of `RUN_ROWS` rows, and every run is written as
one record batch for each bucket, in the order of the log. A bucket is then a column of batches,
read through a memory map. Memory is one run while writing and one bucket while reading, whatever
the log's size; a bucket holds about `BUCKET_ROWS` rows, or its largest user.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from recsys.data.history_spec import decoded, decoded_type
from recsys.data.interactions_config import InteractionsConfig
from recsys.data.ordering import sort_keys
from recsys.features.hashing import reduce_ids_np
from recsys.types import InputError
from serving.encode import ids_of
from serving.parquet import Source

RUN_ROWS = 2**19
BUCKET_ROWS = 2**19


@dataclass(frozen=True)
class Bucket:
    """The interactions of some users, ordered by user, time and place in the log.

    ``users`` (U,) and ``items`` (N,): raw values; ``times`` (N,): sort keys, int64; the events of
    user ``u`` are ``starts[u]:ends[u]``, never none.
    """

    users: pa.Array
    items: pa.Array
    times: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def write_buckets(
    source: Source,
    config: InteractionsConfig,
    path: Path,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Writes the log to ``path`` and returns the number of buckets.

    Errors: `InputError` for a null, and for columns whose type is no id or no time.
    """
    count = max(1, -(-source.num_rows // BUCKET_ROWS))
    schema = pa.schema(
        [
            ("user", decoded_type(source.schema.field(config.user).type)),
            ("item", decoded_type(source.schema.field(config.item).type)),
            ("id", pa.int64()),
            ("time", pa.int64()),
        ]
    )
    with open(path, "xb") as sink, pa.ipc.new_file(sink, schema) as writer:
        waiting: list[pa.RecordBatch] = []
        rows = 0
        for batch in _events(source, config, schema):
            waiting.append(batch)
            rows += batch.num_rows
            if rows >= RUN_ROWS:
                _write_run(writer, waiting, count)
                waiting, rows = [], 0
            if progress is not None:
                progress(batch.num_rows)
        if waiting:
            _write_run(writer, waiting, count)
    return count


def read_buckets(path: Path, count: int) -> Iterator[Bucket]:
    """The buckets of a file by `write_buckets`, empty ones left out."""
    with pa.memory_map(os.fspath(path)) as file, pa.ipc.open_file(file) as reader:
        for bucket in range(count):
            places = range(bucket, reader.num_record_batches, count)
            table = pa.Table.from_batches([reader.get_batch(i) for i in places], reader.schema)
            if table.num_rows:
                yield _ordered(table)


def _events(
    source: Source, config: InteractionsConfig, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    first = 0
    texts = [config.user, config.item]
    for rows in source.batches([*texts, config.timestamp], dictionary=texts):
        for role, name in (("user", config.user), ("item", config.item)):
            _refuse_null(rows, role, name, source, first)
        _refuse_null(rows, "timestamp", config.timestamp, source, first)
        users, items = rows.column(config.user), rows.column(config.item)
        yield pa.RecordBatch.from_arrays(
            [
                decoded(users).cast(schema.field("user").type),
                decoded(items).cast(schema.field("item").type),
                pa.array(ids_of(users, config.user)),
                pa.array(sort_keys(rows.column(config.timestamp), config.timestamp)),
            ],
            schema=schema,
        )
        first += rows.num_rows


def _refuse_null(rows: pa.RecordBatch, role: str, name: str, source: Source, first: int) -> None:
    column = rows.column(name)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(
            f"{source.place(first + row)}: {role} column {name!r} is null; drop or fill such rows"
        )


def _write_run(writer: pa.RecordBatchFileWriter, waiting: list[pa.RecordBatch], count: int) -> None:
    run = pa.Table.from_batches(waiting).combine_chunks()
    bucket = reduce_ids_np(run.column("id").to_numpy(), 0, count)
    run = run.take(pa.array(np.argsort(bucket, kind="stable")))
    sizes = np.bincount(bucket, minlength=count)
    batch = run.combine_chunks().to_batches()[0]
    for first, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        writer.write_batch(batch.slice(int(first), int(size)))


def _ordered(table: pa.Table) -> Bucket:
    table = table.combine_chunks()
    ids, times = table.column("id").to_numpy(), table.column("time").to_numpy()
    order = np.lexsort((times, ids))  # stable: ties stay in the order of the log
    ids = ids[order]
    ends = np.flatnonzero(np.append(ids[1:] != ids[:-1], True)) + 1
    starts = np.concatenate(([0], ends[:-1]))
    users = table.column("user").chunk(0).take(pa.array(order[starts]))
    items = table.column("item").chunk(0).take(pa.array(order))
    return Bucket(users, items, times[order], starts, ends)
