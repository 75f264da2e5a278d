"""Histories from a log of interactions: list columns of what a user did before each row.

One rule for every row of every split: a history holds rows of the *train* split only, of the same
user, *strictly earlier* in time, oldest first, the most recent ones kept. A row is never in its own
history, two rows at the same instant do not see each other, and nothing that happens in valid or
test is seen by anyone. So a train row sees what serving would have known at its time; a valid or
test row sees the user's whole train history, or what of it is earlier where a train row is later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.history_items import Columns, Items
from recsys.data.history_spec import Where, decoded, decoded_type
from recsys.data.ordering import sort_keys
from recsys.types import InputError
from serving.encode import NULL_ID, ids_of, type_family
from serving.parquet import Source, write_parquet

BATCH_ROWS = 65_536


class Events:
    """The events of the train split in the order (user, time, place in the log)."""

    def __init__(
        self,
        train: Source,
        columns: Columns,
        where: Where | None,
        items: Items | None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        own = () if items is not None else columns.attributes
        needed = [columns.user, columns.item, columns.time, *own, *columns.of_event]
        users, times, parts = [], [], []
        for rows in train.batches(needed if where is None else [*needed, where.column]):
            if progress is not None:
                progress(rows.num_rows)
            keep = pc.is_valid(rows.column(columns.user))
            keep = pc.and_(keep, pc.is_valid(rows.column(columns.item)))
            if where is not None:
                keep = pc.and_(keep, where.mask(rows))
            rows = rows.filter(keep)
            users.append(ids_of(rows.column(columns.user), columns.user))
            times.append(sort_keys(rows.column(columns.time), columns.time))
            of_event = {name: decoded(rows.column(name)) for name in columns.of_event}
            parts.append(_with_attributes(rows, columns, items) | of_event)
        self._users, codes = np.unique(np.concatenate(users), return_inverse=True)
        self._times, ranks = np.unique(np.concatenate(times), return_inverse=True)
        key = self._key(codes, ranks)
        order = np.argsort(key, kind="stable")
        self._keys = key[order]
        self.values = {
            name: _joined([part[name] for part in parts]).take(pa.array(order))
            for name in columns.copied
        }

    def before(self, users: np.ndarray, times: np.ndarray | None, length: int) -> tuple[Any, Any]:
        """Which events each row sees: first and end (B,) int64, at most ``length`` of them.

        ``users``: ids (B,); ``times``: sort keys (B,), None: after all events.
        """
        code = np.searchsorted(self._users, users)
        known = code < len(self._users)
        known[known] = self._users[code[known]] == users[known]
        known &= users != NULL_ID
        if times is None:
            earlier = np.full(len(users), len(self._times))
        else:  # instants before the row's own
            earlier = np.searchsorted(self._times, times, side="left")
        end = np.searchsorted(self._keys, self._key(code, earlier), side="left")
        first = np.searchsorted(self._keys, self._key(code, np.zeros_like(code)), side="left")
        first = np.maximum(first, end - length)
        return np.where(known, first, 0), np.where(known, end, 0)

    def _key(self, codes: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """One number that orders by user, then by time."""
        return codes.astype(np.int64) * (len(self._times) + 1) + ranks


def check_types(source: Source, train: Source, columns: Columns) -> None:
    """Errors: `InputError` if users, items or times of ``source`` cannot be compared with those of
    ``train``: a column is missing, or of another type."""
    for name in (columns.user, columns.item, columns.time):
        for one in (train, source):
            if name not in one.schema.names:
                raise InputError(f"{one.files[0]}: column {name!r} is missing")
        here, there = source.schema.field(name).type, train.schema.field(name).type
        if name == columns.time:
            same = here == there  # an instant must be the same number in both
        else:
            same = type_family(here, name) == type_family(there, name)
        if not same:
            raise InputError(
                f"{source.files[0]}: column {name!r} is {here}, but {there} in {train.files[0]}; "
                "write all splits with one type"
            )


def write_histories(
    source: Source,
    path: str | os.PathLike[str],
    events: Mapping[str, Events],
    columns: Columns,
    *,
    length: int,
    items: Items | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Writes ``source`` with one list column per history (its name -> its events) and attribute:
    same rows, same order, atomically.

    With ``items`` the attributes of each row's own item are added too, unless they are there.
    Returns, by history, the mean length and the share of rows without one. Errors: `InputError`
    for a column that is there already, or an attribute that is nowhere.
    """
    added = list_columns(events, columns)
    own = [name for name in columns.attributes if name not in source.schema.names]
    if own and items is None:
        raise InputError(
            f"{source.files[0]}: column {own[0]!r} is missing; add it to this split as to train, "
            "or give a table of items"
        )
    for name in added:
        if name in source.schema.names:
            raise InputError(
                f"{source.files[0]}: column {name!r} is there already; give the history another "
                "name"
            )
    kinds = next(iter(events.values())).values
    fields = [pa.field(f.name, f.type) for f in source.schema]
    fields += [pa.field(name, decoded_type(kinds[name].type)) for name in own]
    fields += [pa.field(name, dtype) for name, dtype in added.items()]
    found = Lengths(events)
    with write_parquet(path, pa.schema(fields)) as writer:
        for rows in source.batches(source.schema.names, BATCH_ROWS):
            out = {name: rows.column(name) for name in rows.schema.names}
            if own:
                attributes = _with_attributes(rows, columns, items)
                out |= {name: attributes[name] for name in own}
            users = ids_of(rows.column(columns.user), columns.user)
            times = sort_keys(rows.column(columns.time), columns.time)
            out |= lists_of(events, columns, users, times, length, found)
            writer.write_batch(pa.RecordBatch.from_arrays(list(out.values()), list(out)))
            if progress is not None:
                progress(rows.num_rows)
    return found.shares()


class Lengths:
    """How long histories are."""

    def __init__(self, events: Mapping[str, Events]) -> None:
        self._rows = dict.fromkeys(events, 0)
        self._total = dict.fromkeys(events, 0)
        self._empty = dict.fromkeys(events, 0)

    def add(self, name: str, lengths: np.ndarray) -> None:
        """Of some rows of one history."""
        self._rows[name] += len(lengths)
        self._total[name] += int(lengths.sum())
        self._empty[name] += int((lengths == 0).sum())

    def shares(self) -> dict[str, Any]:
        """By history, the mean length and the share of rows without one."""
        return {
            name: {
                "mean_length": self._total[name] / max(rows, 1),
                "empty_share": self._empty[name] / max(rows, 1),
            }
            for name, rows in self._rows.items()
        }


def list_columns(events: Mapping[str, Events], columns: Columns) -> dict[str, pa.DataType]:
    """The columns of all histories. Errors: `InputError` if two have one name."""
    added = {
        _column(name, key): pa.list_(decoded_type(values.type))
        for name, made in events.items()
        for key, values in _labelled(made, columns)
    }
    if len(added) < len(events) * len(columns.copied):
        raise InputError(
            "two histories would write one column, such as that of history 'a' and attribute 'b' "
            "and that of history 'a_b'; give histories other names"
        )
    return added


def lists_of(
    events: Mapping[str, Events],
    columns: Columns,
    users: np.ndarray,
    times: np.ndarray | None,
    length: int,
    found: Lengths,
) -> dict[str, pa.Array]:
    """The columns of all histories for rows of ``users`` at ``times`` (see `Events.before`)."""
    out = {}
    for name, made in events.items():
        first, end = made.before(users, times, length)
        found.add(name, end - first)
        for key, values in _labelled(made, columns):
            out[_column(name, key)] = _lists(values, first, end)
    return out


def _lists(values: pa.Array, first: np.ndarray, end: np.ndarray) -> pa.Array:
    """The slices ``values[first:end]`` as lists."""
    lengths = end - first
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
    flat = decoded(values.take(pa.array(place)))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)


def _joined(parts: list[pa.Array]) -> pa.Array:
    """One array of ``parts``; text as codes, since one array holds no more than 2 GiB of it."""
    if not (pa.types.is_string(parts[0].type) or pa.types.is_binary(parts[0].type)):
        return pa.concat_arrays(parts)
    coded = pa.chunked_array([part.dictionary_encode() for part in parts]).unify_dictionaries()
    codes = pa.concat_arrays([chunk.indices for chunk in coded.chunks])
    return pa.DictionaryArray.from_arrays(codes, coded.chunk(0).dictionary)


def _labelled(events: Events, columns: Columns) -> Iterator[tuple[str | None, pa.Array]]:
    """Attribute name (``None``: the item itself) and values of the columns of a history."""
    for name, values in events.values.items():
        yield (None if name == columns.item else name), values


def _column(history: str, attribute: str | None) -> str:
    return history if attribute is None else f"{history}_{attribute}"


def _with_attributes(
    rows: pa.RecordBatch, columns: Columns, items: Items | None
) -> dict[str, pa.Array]:
    """Item and attribute columns of ``rows``."""
    found = {columns.item: decoded(rows.column(columns.item))}
    if items is not None:
        return found | items.of(found[columns.item], columns.item)
    return found | {name: decoded(rows.column(name)) for name in columns.attributes}
