"""One row a user, with all that it did last: what a model that recommends is asked with."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.histories import BATCH_ROWS, Events, Lengths, list_columns, lists_of
from recsys.data.history_items import Columns
from recsys.data.history_spec import decoded, decoded_type
from serving.encode import ids_of
from serving.parquet import Source, write_parquet


def write_latest(
    train: Source,
    path: str | os.PathLike[str],
    events: Mapping[str, Events],
    columns: Columns,
    *,
    length: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Writes each user of ``train`` once, by first appearance, with one list column per history and
    attribute: its last ``length`` events, the very last among them. Atomic.

    Returns the number of users and, by history, the mean length and the share of users without one.
    """
    users = _users(train, columns.user, progress)
    found = Lengths(events)
    fields = [pa.field(columns.user, users.type)]
    fields += [pa.field(name, dtype) for name, dtype in list_columns(events, columns).items()]
    with write_parquet(path, pa.schema(fields)) as writer:
        for first in range(0, len(users), BATCH_ROWS):
            some = users.slice(first, BATCH_ROWS)
            ids = ids_of(some, columns.user)
            out = {columns.user: some, **lists_of(events, columns, ids, None, length, found)}
            writer.write_batch(pa.RecordBatch.from_arrays(list(out.values()), list(out)))
    return len(users), found.shares()


def _users(train: Source, name: str, progress: Callable[[int], None] | None) -> pa.Array:
    """Its distinct values, by first appearance, without null."""
    users = pa.nulls(0, decoded_type(train.schema.field(name).type))
    waiting: list[pa.Array] = []
    for rows in train.batches([name]):
        waiting.append(pc.unique(decoded(rows.column(name))))
        if sum(map(len, waiting)) > max(len(users), BATCH_ROWS):  # so that each is joined few times
            users, waiting = pc.unique(pa.concat_arrays([users, *waiting])), []
        if progress is not None:
            progress(rows.num_rows)
    return pc.unique(pa.concat_arrays([users, *waiting])).drop_null()
