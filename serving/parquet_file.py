"""One Parquet file: its footer, its rows in a stream, and where it is damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from serving.column_types import plain_type
from serving.errors import InputError
from serving.paths import DataFile

OTHER_FORMATS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".csv.gz", ".json.gz", ".orc", ".avro")
READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError)
"""What pyarrow raises for files that it cannot read."""


@dataclass(frozen=True)
class Footer:
    """What one footer says; ``digest`` is that of its bytes."""

    schema: pa.Schema
    group_rows: tuple[int, ...]
    digest: bytes

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_rows)


def _opened(file: DataFile, **options: Any) -> pq.ParquetFile:
    # Nanoseconds, the default for the INT96 times of Spark and Hive, wrap around beyond 2262:
    # 9999-12-31, a usual mark for "never", would be in 1816.
    options["coerce_int96_timestamp_unit"] = "us"
    return pq.ParquetFile(file.path, filesystem=file.filesystem, **options)


def read_footer(file: DataFile) -> Footer:
    """Raises `InputError` if ``file`` is empty, cut short or no Parquet."""
    if file.size == 0:
        raise InputError(f"{file.label}: the file is empty (0 bytes); write it again or remove it")
    try:
        with _opened(file) as parquet:
            metadata = parquet.metadata
            sink = pa.BufferOutputStream()
            metadata.write_metadata_file(sink)
            return Footer(
                parquet.schema_arrow.remove_metadata(),
                tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)),
                hashlib.sha256(sink.getvalue()).digest(),
            )
    except READ_ERRORS as error:
        if file.path.lower().endswith(OTHER_FORMATS):
            raise InputError(
                f"{file.label}: is no Parquet file; convert it, for example with pandas: "
                "pd.read_csv(FILE).to_parquet(OUT)"
            ) from None
        raise InputError(f"{file.label}: not a readable Parquet file: {one_line(error)}") from None


def read_batches(
    file: DataFile,
    footer: Footer,
    columns: list[str],
    batch_rows: int,
    dictionary: frozenset[str],
) -> Iterator[tuple[int, dict[str, pa.Array]]]:
    """Row count and arrays of each batch of one file; ``columns`` may be empty."""
    if not columns:
        bounds = [*range(0, footer.rows, batch_rows), footer.rows]
        yield from ((b - a, {}) for a, b in pairwise(bounds))
        return
    text = [
        name
        for name in columns
        if name in dictionary and pa.types.is_string(plain_type(footer.schema.field(name).type))
    ]
    local = isinstance(file.filesystem, pafs.LocalFileSystem)
    # Arrow cannot join the dictionaries of two row groups inside a list. And with pre_buffer, which
    # saves round trips to an object store, one call holds all its row groups in memory.
    nested = any(_list_of_dictionaries(footer.schema.field(name).type) for name in columns)
    groups = range(len(footer.group_rows))
    calls = [[group] for group in groups] if nested or not local else [list(groups)]
    options = {"pre_buffer": not local, "buffer_size": 2**16 if local else 0}
    with _opened(file, read_dictionary=text, **options) as parquet:
        for chosen in calls:
            for batch in parquet.iter_batches(batch_rows, row_groups=chosen, columns=columns):
                yield batch.num_rows, {name: batch.column(name) for name in columns}


def _list_of_dictionaries(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) and pa.types.is_dictionary(getattr(kind, "value_type", kind))


def diagnose(file: DataFile, footer: Footer, columns: list[str], error: BaseException) -> str:
    """Find the first row group and column that cannot be read alone."""
    for group in range(len(footer.group_rows)):
        for name in columns:
            try:
                with _opened(file) as parquet:
                    parquet.read_row_group(group, [name])
            except READ_ERRORS as found:
                remedy = "the file is damaged, write it again"
                if pa.types.is_fixed_size_list(footer.schema.field(name).type):
                    # Arrow writes nulls among them but does not read them back.
                    remedy = "lists of a fixed size cannot hold null, write them as plain lists"
                return (
                    f"{file.label}: row group {group}, column {name!r} cannot be read "
                    f"({one_line(found)}); {remedy}"
                )
    return f"{file.label}: cannot be read ({one_line(error)})"


def one_line(error: BaseException) -> str:
    """The message of a library's error without line breaks."""
    return " ".join(str(error).split())
