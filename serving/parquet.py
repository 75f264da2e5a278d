"""Parquet in a stream: one `Source` over files, folders, globs, hive partitions and URLs.

Rows come in the order of the sorted files, each exactly once, in batches of bounded size; only
the named columns are read. Anything wrong with a file is one `InputError` that names it.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import secrets
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from serving.column_types import joinable, partition_types, unify
from serving.errors import InputError
from serving.parquet_file import READ_ERRORS, diagnose, read_batches, read_footer
from serving.paths import DataFile, locate

MOST_NAMES = 20
"""Columns that the message about a missing one lists."""


class Source(Protocol):
    """A stream of rows that can be read any number of times, always in the same order."""

    @property
    def schema(self) -> pa.Schema:
        """All columns, hive partition columns last."""

    @property
    def files(self) -> tuple[str, ...]:
        """Paths, as shown in errors."""

    @property
    def num_rows(self) -> int:
        """Exact number of rows."""

    @property
    def fingerprint(self) -> str:
        """Hex digest; changes when a file is rewritten, not when the whole folder is moved."""

    @property
    def content(self) -> str:
        """Hex digest of names, sizes and footers: the same for a copy of the files."""

    def batches(
        self, columns: Sequence[str], batch_rows: int = 65536, dictionary: Sequence[str] = ()
    ) -> Generator[pa.RecordBatch, None, None]:
        """Every row once, as batches of 1 to ``batch_rows`` rows with exactly ``columns``.

        Text columns named in ``dictionary`` arrive dictionary encoded (int32 codes), so that work
        per value can be done once per distinct value; other types named there arrive as they are.
        Raises `InputError` at once for a column that is missing or differs between files, later
        for damage found while reading.
        """

    def place(self, row: int) -> str:
        """Where row number ``row`` of this source is, for error messages."""


def open_source(
    paths: str | os.PathLike[str] | Sequence[str],
    root: str | os.PathLike[str] | None = None,
    *,
    allow_empty: bool = False,
    text: Collection[str] = (),
) -> Source:
    """Open Parquet data; reads the footers only.

    ``paths``: file, folder, glob, URL or a list of these (see `serving.paths`); relative ones
    resolve against ``root``. Hive partition columns are int64 if all their values are whole
    numbers, else text; those of ``text`` are text in any case, since other folders of the same log
    have text there. As in Spark they win over a column of the same name inside the files.
    Raises `InputError` for nothing found, an unreadable footer, or, unless ``allow_empty``, no row
    in any file.
    """
    source = ParquetSource(locate(paths, None if root is None else os.fspath(root)), text)
    if source.num_rows == 0 and not allow_empty:
        raise InputError(f"{source.files[0]}: no rows in any of {len(source.files)} file(s)")
    return source


class ParquetSource:
    """`Source` over Parquet files."""

    def __init__(self, files: Sequence[DataFile], text: Collection[str] = ()) -> None:
        self._files = tuple(files)
        with ThreadPoolExecutor(max_workers=8) as pool:
            self._footers = tuple(pool.map(read_footer, self._files))
        self.files = tuple(file.label for file in self._files)
        self.num_rows = sum(footer.rows for footer in self._footers)
        self._partition_types = partition_types(self._files, text)
        self.schema = self._unified_schema()
        self.fingerprint, self.content = self._digest(stamped=True), self._digest(stamped=False)

    def _unified_schema(self) -> pa.Schema:
        types: dict[str, pa.DataType] = {}
        # what has no rows cannot disagree: a part that came out empty often has other types
        for footer in [f for f in self._footers if f.rows] or self._footers:
            for column in footer.schema:
                if column.name not in self._partition_types:
                    found = joinable(column.type)
                    known = types.get(column.name, found)
                    types[column.name] = unify(known, found) or known
        return pa.schema(list((types | self._partition_types).items()))

    def _digest(self, *, stamped: bool) -> str:
        top = posixpath.commonpath([posixpath.dirname(file.path) or "." for file in self._files])
        digest = hashlib.sha256()
        for file, footer in zip(self._files, self._footers, strict=True):
            name = posixpath.relpath(file.path, top)
            stamp = (file.stamp,) if stamped else ()
            digest.update(repr((name, file.size, *stamp, file.partition)).encode())
            digest.update(footer.digest)
        return digest.hexdigest()

    def batches(
        self, columns: Sequence[str], batch_rows: int = 65536, dictionary: Sequence[str] = ()
    ) -> Generator[pa.RecordBatch, None, None]:
        """See `Source.batches`."""
        assert columns, "batches() needs columns"
        assert batch_rows > 0
        self._check(columns)
        return self._stream(list(dict.fromkeys(columns)), batch_rows, frozenset(dictionary))

    def place(self, row: int) -> str:
        """See `Source.place`."""
        for file, footer in zip(self._files, self._footers, strict=True):
            for group, rows in enumerate(footer.group_rows):
                if row < rows:
                    return f"{file.label}, row group {group}, row {row} of the group"
                row -= rows
        raise AssertionError("row number beyond the last row")

    def _check(self, columns: Sequence[str]) -> None:
        for name in columns:
            if name in self._partition_types:
                for file in self._files:
                    if name not in dict(file.partition):
                        raise InputError(
                            f"{file.label}: not in a folder {name}=value as others are; move it "
                            "into one, or name other paths"
                        )
                continue
            for file, footer in zip(self._files, self._footers, strict=True):
                if footer.rows == 0 and self.num_rows > 0:
                    continue
                fields = footer.schema.get_all_field_indices(name)
                if len(fields) != 1:
                    problem = "is there twice" if fields else "is missing"
                    close = get_close_matches(name, self.schema.names, 1)
                    hint = f"; did you mean {close[0]!r}?" if close and close[0] != name else ""
                    if not fields and not close:
                        there = ", ".join(footer.schema.names[:MOST_NAMES])
                        hint = f"; there are {there}" + ", ..." * (len(footer.schema) > MOST_NAMES)
                    raise InputError(f"{file.label}: column {name!r} {problem}{hint}")
                found, agreed = footer.schema.field(name).type, self.schema.field(name).type
                if unify(found, agreed) is None:
                    raise InputError(
                        f"{file.label}: column {name!r} is {found}, but {agreed} in "
                        f"{self.files[0]}; write all files with one type"
                    )

    def _stream(
        self, columns: list[str], batch_rows: int, dictionary: frozenset[str]
    ) -> Generator[pa.RecordBatch, None, None]:
        stored = [name for name in columns if name not in self._partition_types]
        for file, footer in zip(self._files, self._footers, strict=True):
            if footer.rows == 0:
                continue
            read = 0
            try:
                for rows, arrays in read_batches(file, footer, stored, batch_rows, dictionary):
                    read += rows
                    yield self._assemble(file, rows, arrays, columns, dictionary)
            except READ_ERRORS as error:
                raise InputError(diagnose(file, footer, stored, error)) from None
            if read != footer.rows:
                raise InputError(
                    f"{file.label}: the footer promises {footer.rows} rows but {read} can be read; "
                    "the file is damaged"
                )

    def _assemble(
        self,
        file: DataFile,
        rows: int,
        arrays: dict[str, pa.Array],
        columns: list[str],
        dictionary: frozenset[str],
    ) -> pa.RecordBatch:
        out = []
        for name in columns:
            if name in self._partition_types:
                value = dict(file.partition)[name]
                kind = self._partition_types[name]
                array = pa.repeat(pa.scalar(value, pa.string()).cast(kind), rows)
                if name in dictionary and pa.types.is_string(kind):
                    array = array.dictionary_encode()
            else:
                array, kind = arrays[name], self.schema.field(name).type
                coded = name in dictionary and pa.types.is_dictionary(array.type)
                if array.type != kind and not coded:
                    # integers beyond 2**53 beside floats, and parts of a microsecond, are rounded
                    leaf = kind
                    while pa.types.is_list(leaf):
                        leaf = leaf.value_type
                    rounded = pa.types.is_floating(leaf) or pa.types.is_timestamp(leaf)
                    array = array.cast(kind, safe=not rounded)
            out.append(array)
        return pa.RecordBatch.from_arrays(out, names=columns)


@contextmanager
def write_parquet(path: str | os.PathLike[str], schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a local Parquet file atomically: it appears complete at ``path``, or not at all.

    Yields a writer for ``write_batch`` / ``write_table``. A failure inside the block removes the
    hidden temporary file (in the same folder) and leaves an existing ``path`` as it was.
    """
    target = Path(path)
    if "://" in os.fspath(path):
        raise InputError(f"cannot write to {path}: give a local path and copy the file afterwards")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        sink = open(temporary, "xb")  # noqa: SIM115 - closed below, before the rename
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from None
    try:
        with sink:
            with pq.ParquetWriter(sink, schema) as writer:
                yield writer
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
