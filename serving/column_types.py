"""Which Arrow types of one column may differ between files, and what they are read as."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa

from serving.paths import DataFile


def partition_types(
    files: Sequence[DataFile], text: Collection[str] = ()
) -> dict[str, pa.DataType]:
    """Type of each hive partition column: int64 if all values are whole numbers, else text, as
    those named in ``text`` always are."""
    values: dict[str, list[str]] = {}
    for file in files:
        for key, value in file.partition:
            values.setdefault(key, []).extend([] if value is None else [value])
    return {
        key: pa.int64() if found and all(map(_is_int, found)) and key not in text else pa.string()
        for key, found in values.items()
    }


def _is_int(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= 18


def unify(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both, or None if they mean different things."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    a, b = plain_type(a), plain_type(b)
    if a == b:
        return a
    both = (a, b)
    if all(map(pa.types.is_list, both)):
        element = unify(a.value_type, b.value_type)
        return None if element is None else pa.list_(element)
    for family in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal):
        if all(map(family, both)):
            return _widest(a, b)
    if all(map(_is_number, both)):  # pandas writes the integers of a day with nulls as floats
        return pa.float64()
    if all(map(pa.types.is_timestamp, both)) and (a.tz is None) == (b.tz is None):
        # microseconds, which ids are made of, hold times that nanoseconds do not: 9999-12-31
        return pa.timestamp(a.unit if a.unit == b.unit else "us", a.tz)
    return None


def _is_number(kind: pa.DataType) -> bool:
    families = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    return any(family(kind) for family in families)


def _widest(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    schemas = [pa.schema([("x", a)]), pa.schema([("x", b)])]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:  # int64 with uint64: nothing holds both
        return None


def joinable(kind: pa.DataType) -> pa.DataType:
    """The type as which batches can be joined and gathered: the codes of dictionaries get room for
    the values of all files (pandas writes eight bits), and views, which Arrow cannot gather, become
    plain."""
    if pa.types.is_dictionary(kind):
        return pa.dictionary(pa.int32(), joinable(kind.value_type))
    if pa.types.is_list(kind):
        return pa.list_(joinable(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(joinable(kind.value_type))
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The same values without dictionary, large offsets or views."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type))
    return pa.list_(plain_type(kind.value_type)) if pa.types.is_list(kind) else kind
