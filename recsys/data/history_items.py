"""What histories are made of: the columns of a log, and the attributes of its items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys.data.history_spec import decoded
from recsys.types import InputError
from serving.encode import ids_of, type_family
from serving.parquet import Source


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a log.

    Copied into histories beside the item: ``attributes`` of it, from the log or from a table of
    items, and ``of_event``, what an event alone has, such as a rating, from the log.
    """

    user: str
    item: str
    time: str
    attributes: tuple[str, ...] = ()
    of_event: tuple[str, ...] = ()

    @property
    def copied(self) -> tuple[str, ...]:
        """Item, attributes and what an event has."""
        return (self.item, *self.attributes, *self.of_event)


class Items:
    """Attributes by item: one row per item.

    Errors: `InputError` for an item that is there twice.
    """

    def __init__(self, source: Source, columns: Columns) -> None:
        table = pa.Table.from_batches(
            list(source.batches([columns.item, *columns.attributes])),
            pa.schema([source.schema.field(n) for n in (columns.item, *columns.attributes)]),
        )
        items = decoded(table.column(columns.item).combine_chunks())
        self.family = type_family(items.type, columns.item)
        ids = ids_of(items, columns.item)
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]
        twice = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(twice):
            row = int(self._order[twice[0] + 1])
            raise InputError(
                f"{source.place(row)}: column {columns.item!r}: {items[row].as_py()!r} is there "
                "twice; keep one row per item"
            )
        self._attributes = {
            name: decoded(table.column(name).combine_chunks()) for name in columns.attributes
        }

    def of(self, items: pa.Array, name: str) -> dict[str, pa.Array]:
        """Attribute columns (B,) of the items (B,), null for items that are not in the table."""
        if type_family(items.type, name) not in (self.family, "null"):
            raise InputError(
                f"column {name!r} is {items.type} in the log but {self.family} in the items; cast "
                "one to the other"
            )
        wanted = ids_of(items, name)
        place = np.searchsorted(self._ids, wanted).clip(max=max(len(self._ids) - 1, 0))
        known = self._ids[place] == wanted if len(self._ids) else np.zeros(len(wanted), bool)
        rows = pa.array(self._order[place] if len(self._ids) else place, mask=~known)
        return {key: values.take(rows) for key, values in self._attributes.items()}
