"""Byte budgets: what a user writes, what is fixed beforehand, and how many rows are left."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from recsys.types import FieldSpec, InputError

FLOAT_BYTES = 4
INDEX_BYTES = 8
SLOT_BYTES = 64
"""Set aside per lookup slot for salts, offsets and orders, where sizes come in large steps; real
index buffers are smaller."""

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TEXT = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*$")


def parse_bytes(text: str) -> int:
    """``"10MB"`` -> 10,000,000; units B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (of 1024).

    Errors: `ValueError` for any other text or less than one byte.
    """
    match = _TEXT.match(text)
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None:
        raise ValueError(f"budget {text!r} is no size; write a number and a unit, such as 10MB")
    size = int(Decimal(match.group(1)) * unit)  # exact: 65.35KB is 65,350 bytes
    if size < 1:
        raise ValueError(f"budget {text!r} is less than one byte")
    return size


def numeric_words(fields: Sequence[FieldSpec]) -> int:
    """Vectors of all numeric fields: one per column and one for missing values."""
    return sum(field.width + 1 for field in fields if field.kind == "numeric")


def fixed_bytes(fields: Sequence[FieldSpec], dims: Mapping[str, int], *, slots: int = 0) -> int:
    """Bytes of all layers that do not depend on how many rows the tables get."""
    vectors = FLOAT_BYTES * numeric_words(fields) * sum(dims.values())
    return vectors + _numeric_index(fields, dims) + SLOT_BYTES * slots


def _numeric_index(fields: Sequence[FieldSpec], dims: Mapping[str, int]) -> int:
    """Bytes that every layer needs to find the columns of numeric fields."""
    return INDEX_BYTES * len(dims) * sum(field.kind == "numeric" for field in fields)


def owners(fields: Sequence[FieldSpec]) -> dict[str, FieldSpec]:
    """The fields that own rows (not numeric, not sharing another's), by name.

    Errors: `InputError` if a field shares the rows of one that is missing or shares itself.
    """
    result = {f.name: f for f in fields if f.kind != "numeric" and f.shares is None}
    for field in fields:
        if field.shares is not None and field.shares not in result:
            raise InputError(
                f"features.{field.name}.shares: {field.shares!r} owns no embedding rows; "
                "name a categorical, bag or sequence feature that shares nothing itself"
            )
    return result


def owner_name(field: FieldSpec) -> str:
    """Name of the field whose rows ``field`` uses."""
    return field.shares or field.name


def dense_ids(field: FieldSpec, *, method: str) -> int:
    """``num_ids``; `InputError` with the remedy if the ids of ``field`` are open."""
    if field.num_ids is None:
        raise InputError(
            f"features.{field.name}: embedding method {method} gives every id its own row and "
            "needs a closed id space; give the feature a vocabulary or buckets, or use "
            "embedding.method unified"
        )
    return field.num_ids


def budget_bytes(budget: str | float, fields: Sequence[FieldSpec], dims: Mapping[str, int]) -> int:
    """A budget in bytes: a size, or a share of the floats of the full method's layers, to which
    come the index structures of one lookup per field (any method has these).

    Errors: `InputError` if a share is asked for while a field has open ids.
    """
    if isinstance(budget, str):
        return parse_bytes(budget)
    words = 0
    for field in owners(fields).values():
        if field.num_ids is None:
            raise InputError(
                f"embedding.budget {budget}: a share of the full table needs closed id spaces, but "
                f"features.{field.name} has open ids; give a size such as 10MB"
            )
        words += field.num_ids
    floats = FLOAT_BYTES * (words + numeric_words(fields)) * sum(dims.values())
    slots = sum(field.kind != "numeric" for field in fields)
    return int(budget * floats) + _numeric_index(fields, dims) + SLOT_BYTES * slots


def size_text(size: int) -> str:
    """A size that, given as a budget, is never too small: ``1234567`` -> ``1.24MB``."""
    for unit in ("GB", "MB", "KB"):
        scale = _UNITS[unit]
        if size >= scale:
            return f"{-(-size * 100 // scale) / 100:.2f}{unit}"
    return f"{size}B"


def last_fitting(fits: Callable[[float], bool], *, inside: float, outside: float) -> float:
    """The point nearest to ``outside`` that fits, to 2^-60 of the way: ``inside`` fits, ``outside``
    does not."""
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if fits(middle) else (inside, middle)
    return inside


def largest_fitting(fits: Callable[[int], bool], *, low: int, high: int) -> int:
    """The largest number from ``low``, which fits, to ``high`` that fits."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


class BudgetTooSmall(InputError):
    """A budget below what a method can reach; ``floor``: the least that it can, as a budget."""

    floor: str


def refuse(budget: int, floor: int, what: str) -> BudgetTooSmall:
    """The error of a budget below what a method can reach."""
    error = BudgetTooSmall(
        f"embedding.budget {size_text(budget)} is too small: {what} needs at least "
        f"{size_text(floor)}; raise the budget or lower embedding.embedding_dim"
    )
    error.floor = size_text(floor)  # an attribute, so that the error passes between processes
    return error
