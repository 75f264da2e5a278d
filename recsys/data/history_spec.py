"""Which rows of a log are the events of a history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys.types import InputError

_COMPARE: dict[str, Any] = {
    "=": pc.equal,
    "!=": pc.not_equal,
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    ">": pc.greater,
    "<": pc.less,
}


@dataclass(frozen=True)
class Where:
    """Which rows are events: ``column`` compared with ``value``, given as text. Null is no event.

    ``comparison``: ``=``, ``!=``, ``>=``, ``<=``, ``>`` or ``<``.
    """

    column: str
    comparison: str
    value: str

    def mask(self, rows: pa.RecordBatch) -> pa.Array:
        """(B,) booleans. Errors: `InputError` for a value that the column's type cannot hold."""
        column = decoded(rows.column(self.column))
        try:
            value = pa.scalar(self.value).cast(column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(
                f"history filter: {self.value!r} is no value of column {self.column!r} "
                f"({column.type})"
            ) from None
        return pc.fill_null(_COMPARE[self.comparison](column, value), False)


@dataclass(frozen=True)
class History:
    """One history: columns ``name`` (items) and ``name_ATTRIBUTE``, of events that pass ``where``
    (``None``: all)."""

    name: str
    where: Where | None = None


def parse_history(text: str) -> History:
    """``NAME`` or ``NAME: COLUMN COMPARISON VALUE`` (``liked: rating >= 4``).

    Errors: `InputError` with the form that was expected.
    """
    name, colon, condition = (part.strip() for part in text.partition(":"))
    if name and not colon:
        return History(name)
    for sign in ("!=", ">=", "<=", "==", "=", ">", "<"):
        column, found, value = (part.strip() for part in condition.partition(sign))
        if name and found and column and value:
            return History(name, Where(column, "=" if sign == "==" else sign, value))
    raise InputError(f"history {text!r}: must be NAME or 'NAME: COLUMN >= VALUE'")


def decoded(array: pa.Array) -> pa.Array:
    """The plain array of a dictionary encoded one; others as they are."""
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def decoded_type(kind: pa.DataType) -> pa.DataType:
    """The type of what `decoded` gives."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
