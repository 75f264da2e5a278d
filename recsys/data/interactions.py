"""An interaction log as item sequences: one row a user, with the items as a list, oldest first.

Valid and test rows say what was known (the whole history, not cut to any length) and what came
next (``target``). Every row of them has a history and a target: a user's very first item is never
asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.history_spec import decoded_type
from recsys.data.interactions_config import GlobalTime, InteractionsConfig
from recsys.data.item_counts import ItemCounts
from recsys.data.ordering import open_time_bounds
from recsys.data.user_buckets import Bucket, read_buckets, write_buckets
from recsys.types import InputError
from serving.encode import ids_of
from serving.parquet import Source, open_source, write_parquet

FORMAT = 1
USER, TARGET = "user", "target"
PARTS = ("train", "valid", "test")
_CATALOGUE = "items"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SequenceFiles:
    """The parts of a log, and its items.

    ``train``: columns ``user`` and the list of the user's train items. ``valid``, ``test``: the
    list holds everything before ``target`` (in test also the valid item). ``catalogue``: Parquet
    with each ``item`` of train once and its ``count`` there, by falling count.
    """

    train: Source
    valid: Source
    test: Source
    catalogue: Path


def write_sequences(
    source: Source,
    config: InteractionsConfig,
    column: str,
    folder: Path,
    progress: Callable[[int], None] | None = None,
) -> SequenceFiles:
    """Splits the log ``source`` and writes its sequences, lists in ``column``, below ``folder``.

    The files lie in a folder named by a digest of the data and the rule, which appears complete or
    not at all and is reused. The order of rows depends on the users alone. ``progress`` is called
    with the number of rows of each batch of the log. Memory: see `recsys.data.user_buckets`, plus
    a count for each distinct item.

    Errors: `InputError` for a null user, item or time, for columns that are missing or of a wrong
    type, for a part without rows and for a full disk.
    """
    if column in (USER, TARGET):
        raise InputError(
            f"features.{column}: sequences have a column {column!r} of their own; give the "
            "sequence another column"
        )
    key = _key(source, config, column)
    final = folder / key[:32]
    if _complete(final):
        _log.info("sequences reused: %s", final)
        return _opened(final)
    temporary = folder / f".{final.name}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        _write(source, config, column, temporary, progress)
        if not _complete(final):  # a run at the same time may have been faster
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
    except OSError as error:
        raise InputError(
            f"cannot write sequences to {final}: {error.strerror or error}; free the disk or "
            "choose another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files = _opened(final)
    _log.info("sequences written: %s (%d users in train)", final, files.train.num_rows)
    return files


def _key(source: Source, config: InteractionsConfig, column: str) -> str:
    rule = config.model_dump(mode="json", exclude={"source", "items"})
    text = json.dumps([FORMAT, source.fingerprint, rule, column], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _complete(folder: Path) -> bool:
    return all((folder / f"{name}.parquet").is_file() for name in (*PARTS, _CATALOGUE))


def _opened(folder: Path) -> SequenceFiles:
    train, valid, test = (open_source(folder / f"{name}.parquet") for name in PARTS)
    return SequenceFiles(train, valid, test, folder / f"{_CATALOGUE}.parquet")


def _write(
    source: Source,
    config: InteractionsConfig,
    column: str,
    folder: Path,
    progress: Callable[[int], None] | None,
) -> None:
    source.batches([config.user, config.item, config.timestamp])  # refuses columns that are missing
    user, item = (
        decoded_type(source.schema.field(name).type) for name in (config.user, config.item)
    )
    for name, dtype in ((config.user, user), (config.item, item)):
        ids_of(pa.nulls(0, dtype), name)  # refuses floats and lists before anything is read
    schema = pa.schema([(USER, user), (column, pa.list_(item))])
    judged = schema.append(pa.field(TARGET, item))
    counts = ItemCounts(item)
    written = dict.fromkeys(PARTS, 0)
    spool = folder / "users.arrow"
    buckets = write_buckets(source, config, spool, progress)  # refuses nulls, by row
    rule = _rule(source, config)
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                write_parquet(folder / f"{name}.parquet", schema if name == "train" else judged)
            )
            for name in PARTS
        }
        for bucket in read_buckets(spool, buckets):
            for name, rows in rule(bucket).items():
                batch = rows.batch(bucket, writers[name].schema)
                writers[name].write_batch(batch)
                written[name] += batch.num_rows
                if name == "train":
                    counts.add(pc.list_flatten(batch.column(column)))
        for name, number in written.items():
            if number == 0:
                raise InputError(_nobody(name, source, config))
    spool.unlink()
    table = counts.table()
    with write_parquet(folder / f"{_CATALOGUE}.parquet", table.schema) as writer:
        writer.write_table(table)


@dataclass(frozen=True)
class _Rows:
    """Rows of one part in a bucket: user ``u`` (U',) has the history ``starts[u]:end`` (end (U',))
    and, in valid and test, the event after it as the target."""

    users: np.ndarray
    end: np.ndarray

    def batch(self, bucket: Bucket, schema: pa.Schema) -> pa.RecordBatch:
        first = bucket.starts[self.users]
        lengths = self.end - first
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        place = np.repeat(first - offsets[:-1], lengths) + np.arange(offsets[-1])
        lists = pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), bucket.items.take(pa.array(place))
        )
        columns = [bucket.users.take(pa.array(self.users)), lists]
        if TARGET in schema.names:
            columns.append(bucket.items.take(pa.array(self.end)))
        return pa.RecordBatch.from_arrays(columns, schema=schema)


Rule = Callable[[Bucket], dict[str, _Rows]]


def _rule(source: Source, config: InteractionsConfig) -> Rule:
    if isinstance(config.split, GlobalTime):
        shares = (config.split.valid + config.split.test, config.split.test)
        cuts = open_time_bounds(source, config.timestamp, shares)
        return lambda bucket: _by_time(bucket, cuts)
    return _leave_one_out


def _leave_one_out(bucket: Bucket) -> dict[str, _Rows]:
    events = bucket.ends - bucket.starts
    users = np.arange(len(events))
    two, three = users[events >= 2], users[events >= 3]
    return {
        "train": _Rows(users, bucket.ends - np.minimum(events - 1, 2)),
        "valid": _Rows(three, bucket.ends[three] - 2),
        "test": _Rows(two, bucket.ends[two] - 1),
    }


def _by_time(bucket: Bucket, cuts: tuple[int, int]) -> dict[str, _Rows]:
    # Of each user the first event at or after each cut.
    opens_valid, opens_test = (
        bucket.starts + np.add.reduceat((bucket.times < cut).astype(np.int64), bucket.starts)
        for cut in cuts
    )
    train = np.flatnonzero(opens_valid > bucket.starts)
    valid = np.flatnonzero((opens_valid > bucket.starts) & (opens_valid < opens_test))
    test = np.flatnonzero((opens_test > bucket.starts) & (opens_test < bucket.ends))
    return {
        "train": _Rows(train, opens_valid[train]),
        "valid": _Rows(valid, opens_valid[valid]),
        "test": _Rows(test, opens_test[test]),
    }


def _nobody(name: str, source: Source, config: InteractionsConfig) -> str:
    if isinstance(config.split, GlobalTime):
        needs = {
            "train": "an interaction before the first cut",
            "valid": "one interaction before the first cut and one between the cuts",
            "test": "one interaction before the second cut and one after it",
        }[name]
        remedy = "use other shares or more rows"
    else:
        needs = {"train": "one", "valid": "three", "test": "two"}[name] + " interactions"
        remedy = "use more rows"
    return (
        f"data.split {config.split.method}: no user of {source.files[0]} has a row in {name}, "
        f"which takes {needs}; {remedy}"
    )
