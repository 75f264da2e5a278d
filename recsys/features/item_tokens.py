"""Reading a catalogue: its items, and their attributes as tokens."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, PositiveInt, model_validator

from recsys.features.tokenizers import Tokenizer
from recsys.settings import Paths
from recsys.types import FrozenConfig, InputError
from serving.encode import NULL_ID, ids_of, is_list, type_family
from serving.parquet import Source


class ItemTextConfig(FrozenConfig):
    """The catalogue: one row an item, ``item`` as in the log. An item's text is its ``attributes``
    in this order, each the words of its name and then those of its value (text, a number, or a list
    of them; nulls are left out), at most ``max_tokens`` of them.

    ``tokenizer``: see `recsys.features.tokenizers.open_tokenizer`. Words in fewer than
    ``min_count`` items are not read. Items whose text has no word are unknown to the model, items
    that training never saw are not.
    """

    source: Paths
    item: str
    attributes: Annotated[tuple[str, ...], Field(min_length=1)]
    tokenizer: str = "words"
    max_tokens: PositiveInt = 32
    min_count: PositiveInt = 1

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.attributes)) < len(self.attributes):
            raise ValueError("data.items.attributes: a column is given twice; give each once")
        return self


def read_items(source: Source, name: str, family: str) -> pa.Array:
    """The catalogue's items (N,), of the log's type ``family``; null for rows of no item. Errors:
    `InputError` for another type, and for an item that has two rows."""
    parts = []
    for rows in source.batches([name]):
        column = rows.column(0)
        if type_family(column.type, name) != family or is_list(column.type):
            raise InputError(
                f"{source.files[0]}: column {name!r} is {column.type}, but the log's items are "
                f"{family}; give both the same type"
            )
        parts.append(column)
    items = pa.concat_arrays(parts)  # no source is empty
    ids = ids_of(items, name)
    (rows,) = np.nonzero(ids != NULL_ID)
    _, first = np.unique(ids[rows], return_index=True)
    if len(first) < len(rows):
        row = int(np.delete(rows, first)[0])
        raise InputError(
            f"{source.place(row)}: item {items[row].as_py()!r} of column {name!r} is in the "
            "catalogue already; keep one row an item"
        )
    return items


@dataclass(frozen=True)
class Tokens:
    """Tokens of a whole catalogue, in order: the row (N,), the number of the word among all (N,),
    whether it is of a name (N,), and which of ``pieces`` (P,), ids of text, it is (N,)."""

    row: np.ndarray
    word: np.ndarray
    key: np.ndarray
    piece: np.ndarray
    pieces: np.ndarray


def read_tokens(
    source: Source,
    config: ItemTextConfig,
    tokenizer: Tokenizer,
    progress: Callable[[int], None] | None,
) -> Tokens:
    split = lru_cache(2**14)(tokenizer)  # values repeat
    known: dict[str, int] = {}
    rows, words, keys, pieces = (array("q") for _ in range(4))  # of ints a list takes five times
    names = [split(name.replace("_", " ")) for name in config.attributes]
    row, word = 0, 0
    for batch in source.batches(list(config.attributes)):
        columns = [
            _as_text(column, name)
            for column, name in zip(batch.columns, config.attributes, strict=True)
        ]
        for values in zip(*columns, strict=True):
            for name, value in zip(names, values, strict=True):
                if value is None:
                    continue
                left = config.max_tokens
                for is_key, part in ((True, name), (False, split(value))):
                    for found in part:
                        taken = found if is_key else found[:left]
                        left -= 0 if is_key else len(taken)
                        for piece in taken:
                            rows.append(row)
                            words.append(word)
                            keys.append(is_key)
                            pieces.append(known.setdefault(piece, len(known)))
                        word += 1
            row += 1
        if progress is not None:
            progress(batch.num_rows)
    ids = ids_of(pa.array(list(known), pa.string()), "words")
    return Tokens(
        np.array(rows, np.int64),
        np.array(words, np.int64),
        np.array(keys, bool),
        np.array(pieces, np.int64),
        ids,
    )


TEXTUAL = ("text", "int", "float", "bool", "timestamp")


def _as_text(column: pa.Array, name: str) -> list[str | None]:
    """Each value as text, lists with spaces between; None for null and what is not a number."""
    values = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    family = type_family(values.type, name)  # refuses what has no family
    nested = is_list(values.type) and is_list(values.type.value_type)
    if nested or family not in (*TEXTUAL, "null"):
        raise InputError(
            f"data.items.attributes: column {name!r} is {column.type}, which is no text; cast it, "
            "or leave it out"
        )
    if is_list(values.type):
        parts = ((part for part in row or () if _says(part)) for row in values.to_pylist())
        return [" ".join(str(part) for part in row) or None for row in parts]
    return [str(value) if _says(value) else None for value in values.to_pylist()]


def _says(value: object) -> bool:
    return value is not None and value == value  # not a number is unlike itself
