"""From what a user calls "the data" to a sorted list of files.

Accepted: a file, a folder (searched in depth), a glob (``*``, ``?``, ``[..]``, ``**``), a list of
these, and any URL that pyarrow or fsspec can open (``s3://``, ``gs://``, ``memory://``,
``file://``). ``key=value`` folders below the named folder, or below the fixed part of a glob, are
hive partitions. Hidden names (``.x``, ``_SUCCESS``, ``_metadata``, ``_temporary``) are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs as pafs

from serving.errors import InputError

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
_SECRET = ("secret", "password", "passwd", "token", "key", "credential", "signature")
NATIVE_SCHEMES = frozenset({"file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs"})
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class DataFile:
    """One file: where it is, what users read in errors, and its hive partition values as text.

    ``stamp``: changes whenever the file is rewritten (modification time, or the entity tag of an
    object store), and stays when the file is moved.
    """

    filesystem: pafs.FileSystem
    path: str
    label: str
    size: int
    stamp: str
    partition: tuple[tuple[str, str | None], ...]


def locate(
    paths: str | os.PathLike[str] | Sequence[str], root: str | None = None
) -> list[DataFile]:
    """All files that ``paths`` names, sorted by path, each once.

    Relative paths resolve against ``root`` (default: the current folder). Raises `InputError` if a
    path names nothing or a folder holds no Parquet file.
    """
    items = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not items:
        raise InputError("no data: the list of paths is empty; name a file, folder, glob or URL")
    found: dict[str, DataFile] = {}
    for item in items:
        for file in _locate_one(os.fspath(item), root):
            found.setdefault(file.label, file)
    return [found[label] for label in sorted(found)]


def _locate_one(item: str, root: str | None) -> list[DataFile]:
    full = _absolute(item, root)
    shown, place = without_secrets(item), without_secrets(full)
    try:
        fixed, patterns = _split_glob(full)
        filesystem, base, prefix = _open_filesystem(full)
        if not patterns or filesystem.get_file_info(base).type != pafs.FileType.NotFound:
            infos = _of_path(filesystem, base)
        else:
            filesystem, base, prefix = _open_filesystem(fixed)
            infos = [
                file
                for match in _glob(filesystem, base, patterns)
                for file in ([match] if match.is_file else _of_path(filesystem, match.path))
            ]
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split()).replace(item, shown)
        raise InputError(f"cannot open data path {shown!r} ({place}): {reason}") from None
    if not infos:
        raise InputError(
            f"data path {shown!r} names no Parquet file (looked at {place}); data are Parquet "
            "files: convert others, check the path, and the folder that relative paths start from"
        )
    return [_data_file(filesystem, info, base, prefix) for info in infos]


def without_secrets(text: str) -> str:
    """``text``, which may hold a URL, without what is secret in it: user and password, and the
    values of options such as ``secret_key``. What is left still names the place, for those who
    have access from elsewhere."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        return text
    place, question, options = rest.partition("?")
    host, slash, path = place.partition("/")
    user, _, name = host.rpartition("@")
    if ":" in user:
        host = name
    shown = []
    for option in options.split("&"):
        key, equals, value = option.partition("=")
        secret = any(word in key.lower() for word in _SECRET)
        shown.append(f"{key}{equals}{'***' if secret and value else value}")
    return f"{scheme}://{host}{slash}{path}{question}{'&'.join(shown)}"


def _absolute(item: str, root: str | None) -> str:
    """``item`` as an absolute local path or URL."""
    if "://" in item:
        return item
    item = os.path.expanduser(item)
    if root is not None and "://" in root and not os.path.isabs(item):
        return f"{root.rstrip('/')}/{item}"
    return os.path.abspath(os.path.join(root or ".", item))


def _split_glob(full: str) -> tuple[str, list[str]]:
    """The part before the first component with a wildcard, and the components from there on."""
    wild = "*[" if "://" in full else "*?["  # in a URL '?' starts the options
    parts = full.split("/")
    for i, part in enumerate(parts):
        if any(mark in part for mark in wild):
            return "/".join(parts[:i]) or "/", parts[i:]
    return full, []


def _open_filesystem(full: str) -> tuple[pafs.FileSystem, str, str]:
    """File system, path inside it, and the prefix that makes such paths readable in errors."""
    scheme, mark, rest = full.partition("://")
    if not mark:
        return pafs.LocalFileSystem(), full, ""
    if scheme == "file":
        return pafs.LocalFileSystem(), unquote(rest.removeprefix("localhost")), ""
    if scheme in NATIVE_SCHEMES:
        filesystem, path = pafs.FileSystem.from_uri(full)
        return filesystem, path, f"{scheme}://"
    import fsspec  # only for URLs that pyarrow does not know

    filesystem, path = fsspec.core.url_to_fs(full)
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path, f"{scheme}://"


def _hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _children(filesystem: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    infos = filesystem.get_file_info(pafs.FileSelector(folder, allow_not_found=True))
    return sorted(infos, key=lambda info: info.path)


def _of_path(filesystem: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """The file itself, or every Parquet file below the folder."""
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        return []
    if info.is_file:
        return [info]
    found: list[pafs.FileInfo] = []
    for child in _children(filesystem, path):
        name = child.base_name
        if _hidden(name):
            continue
        if not child.is_file:
            found += _of_path(filesystem, child.path)
        elif name.endswith(PARQUET_SUFFIXES) or "." not in name:
            found.append(child)
    return found


def _glob(
    filesystem: pafs.FileSystem, folder: str, patterns: Sequence[str]
) -> Iterator[pafs.FileInfo]:
    head, *rest = patterns
    children = [c for c in _children(filesystem, folder) if not _hidden(c.base_name)]
    if head == "**":
        yield from _glob(filesystem, folder, rest or ["*"])
        for child in children:
            if not child.is_file:
                yield from _glob(filesystem, child.path, patterns)
        return
    for child in children:
        if fnmatchcase(child.base_name, head):
            if not rest:
                yield child
            elif not child.is_file:
                yield from _glob(filesystem, child.path, rest)


def _data_file(
    filesystem: pafs.FileSystem, info: pafs.FileInfo, base: str, prefix: str
) -> DataFile:
    folders = info.path[len(base) :].strip("/").split("/")[:-1]
    partition = tuple(
        (key, None if value == HIVE_NULL else unquote(value))
        for key, mark, value in (folder.partition("=") for folder in folders)
        if mark and key
    )
    stamp = str(info.mtime_ns)
    if info.mtime_ns is None and isinstance(filesystem, pafs.PyFileSystem):
        stamp = str(filesystem.handler.fs.ukey(info.path))  # creation time or entity tag
    return DataFile(filesystem, info.path, prefix + info.path, info.size or 0, stamp, partition)
