"""Raw rows for proofs and explanations: few enough to hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from recsys.training.tracking import NullTracker
from recsys.training.tracking.attach import FinishedRun
from recsys.types import InputError
from serving.bundle import Bundle
from serving.encode import InputField
from serving.parquet import Source


def first_rows(source: Source, inputs: Sequence[InputField], count: int) -> pa.Table:
    """The first ``count`` raw rows of the columns that ``inputs`` read."""
    columns = list(dict.fromkeys(field.column for field in inputs))
    batches: list[pa.RecordBatch] = []
    with closing(source.batches(columns, count)) as stream:
        for batch in stream:
            batches.append(batch)
            if sum(part.num_rows for part in batches) >= count:
                break
    schema = batches[0].schema if batches else pa.schema([source.schema.field(c) for c in columns])
    return pa.Table.from_batches(batches, schema).slice(0, count)


def spread_rows(
    source: Source, columns: Sequence[str], count: int
) -> Iterator[tuple[int, pa.RecordBatch, np.ndarray]]:
    """``count`` rows evenly spread over ``source`` (all, if it has no more), in a stream of
    ``(first, rows, picks)``: a whole batch, the row number of its first row, and which of its rows
    are meant (at least one). Of each stretch of rows a random one, always the same: every tenth
    row might be of one kind."""
    total = source.num_rows
    edges = np.arange(min(count, total) + 1) * total // max(1, min(count, total))
    within = np.random.default_rng(total).random(len(edges) - 1)
    wanted = edges[:-1] + (within * np.diff(edges)).astype(np.int64)
    first = 0
    for rows in source.batches(columns):
        start, stop = np.searchsorted(wanted, (first, first + rows.num_rows))
        if stop > start:
            yield first, rows, wanted[start:stop] - first
        first += rows.num_rows


def run_of(bundle: Bundle, uri: str | None) -> FinishedRun | NullTracker:
    """Where pictures of ``bundle`` are logged: its run in the store at ``uri``, or nowhere.

    Errors: `InputError` for a store or a run that is not there.
    """
    if uri is None:
        return NullTracker()
    run_id = bundle.manifest.get("run_id")
    if not isinstance(run_id, str):
        raise InputError(f"--uri: {bundle.path} was trained without tracking and has no run there")
    return FinishedRun(uri, run_id)


def files_by_suffix(out: Sequence[Path], known: Sequence[str]) -> dict[str, Path]:
    """Output files by their suffix, checked before anything is computed."""
    files: dict[str, Path] = {}
    for path in out:
        if path.suffix not in known:
            raise InputError(f"--out {path}: must end in {' or '.join(known)}")
        if path.suffix in files:
            raise InputError(f"--out {path}: {files[path.suffix]} is there already; give one each")
        files[path.suffix] = path
    return files


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a picture; `InputError` if its folder cannot be made or written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}") from None
