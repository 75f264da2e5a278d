"""The cache of encoded sequences: a folder of raw little-endian arrays, read through memory maps.

``values`` int32 (all items, one sequence after the other), ``ends`` int64 (where each sequence
ends), ``targets`` int32 (of valid and test), and ``meta.json`` with the key and the sizes.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from recsys.data.interactions import TARGET
from recsys.features import Features
from recsys.types import InputError, InputField
from serving.encode import check_schema, unique_ids
from serving.parquet import Source

FORMAT = 1
BATCH_ROWS = 2048
_INT32, _INT64 = np.dtype("<i4"), np.dtype("<i8")
_ARRAYS: dict[str, np.dtype[Any]] = {"values": _INT32, "ends": _INT64, "targets": _INT32}
_META = "meta.json"


@dataclass(frozen=True)
class Sequences:
    """Encoded sequences: number ``i`` is ``values[ends[i - 1] : ends[i]]``, judged by
    ``targets[i]`` (none in train)."""

    values: np.ndarray
    ends: np.ndarray
    targets: np.ndarray


def read_sequences(folder: Path, key: str) -> Sequences | None:
    """The arrays of a complete cache of this key, mapped; None for anything else."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in _ARRAYS}
    except (OSError, ValueError):
        return None
    if meta != {"key": key, "bytes": sizes}:
        return None
    arrays = {
        # Nothing cannot be mapped.
        name: np.memmap(folder / name, dtype, mode="r").view(np.ndarray)
        if sizes[name]
        else np.empty(0, dtype)
        for name, dtype in _ARRAYS.items()
    }
    return Sequences(**arrays)


def write_encoded(
    folder: Path,
    key: str,
    source: Source,
    features: Features,
    judged: bool,
    progress: Callable[[int], None] | None,
) -> None:
    """Encodes ``source`` into ``folder``, which appears complete or not at all.

    ``judged``: with targets. Errors: see `recsys.data.sequence_data.sequence_data`.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    sizes = dict.fromkeys(_ARRAYS, 0)
    try:
        temporary.mkdir(parents=True)
        with ExitStack() as stack:
            sinks = {name: stack.enter_context(open(temporary / name, "xb")) for name in _ARRAYS}
            for part in _encoded(source, features, judged):
                for name, array in asdict(part).items():
                    array.tofile(sinks[name])
                    sizes[name] += array.nbytes
                if progress is not None:
                    progress(len(part.ends))
            for sink in sinks.values():
                sink.flush()
                os.fsync(sink.fileno())
        text = json.dumps({"key": key, "bytes": sizes})
        (temporary / _META).write_text(text, encoding="utf-8")
        if read_sequences(folder, key) is None:  # a run at the same time may have been faster
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(temporary, folder)
    except OSError as error:
        raise InputError(
            f"cannot write the encoded sequences {folder}: {error.strerror or error}; free the "
            "disk or choose another cache folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _encoded(source: Source, features: Features, judged: bool) -> Iterator[Sequences]:
    """The sequences of each batch; ``ends`` count from the start of the source."""
    (wanted,) = features.inputs
    target = InputField(name=TARGET, column=TARGET, kind="id", dtype=wanted.dtype)
    inputs = [wanted, target] if judged else [wanted]
    check_schema(source.schema, inputs, source.files[0])
    columns = [field.column for field in inputs]
    encode = features.encoder().list_features[0]

    def encoded(values: pa.Array, column: str) -> np.ndarray:
        ids, codes = unique_ids(values, column)
        return encode(torch.from_numpy(np.array(ids))).numpy().astype(_INT32)[codes]

    done = first = 0
    for rows in source.batches(columns, BATCH_ROWS, dictionary=columns):
        lists = rows.column(wanted.column)
        lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(_INT64)
        values = encoded(pc.list_flatten(lists), wanted.column)
        targets = np.empty(0, _INT32)
        if judged:
            _refuse_null(rows.column(TARGET), source, first)
            targets = encoded(rows.column(TARGET), TARGET)
        yield Sequences(values, done + np.cumsum(lengths), targets)
        done, first = done + len(values), first + rows.num_rows


def _refuse_null(targets: pa.Array, source: Source, first: int) -> None:
    """Nothing can be told of a row that does not say what came next; a miss would be a lie."""
    if targets.null_count:
        row = int(np.flatnonzero(targets.is_null().to_numpy(zero_copy_only=False))[0])
        raise InputError(f"{source.place(first + row)}: {TARGET} is null; drop such rows")
