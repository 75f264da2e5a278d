"""Batch scoring: Parquet in, Parquet with scores or lists out; memory does not grow with rows."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Deque, Iterator, List, Sequence

import pyarrow as pa
import torch

from serving.bundle import Bundle
from serving.errors import InputError
from serving.parquet import Source, open_source, write_parquet
from serving.scorer import SCORE, Scorer
from serving.topk import TopK, open_scorer

__all__ = ["SCORE", "ScoreReport", "score"]

GROUP_ROWS = 131_072
"""Rows of a row group of the output: groups as small as a batch would make it slow to read."""

BATCH_ROWS = 2048
"""Rows that one thread encodes and puts through the graph at once."""


@dataclass(frozen=True)
class ScoreReport:
    """``rows`` written, and wall-clock ``seconds`` from the opened bundle to the renamed file."""

    rows: int
    seconds: float


def score(
    bundle: str | Path | Bundle | Scorer | TopK,
    source: str | Path | Sequence[str] | Source,
    out: str | Path,
    keep: Sequence[str] = (),
    batch_rows: int = BATCH_ROWS,
    progress: bool = True,
    k: int | None = None,
    root: str | Path | None = None,
) -> ScoreReport:
    """Score every row of ``source`` into one Parquet file ``out``: columns ``keep`` as they were,
    then ``score`` float32, in the order of the source. A bundle of task ``top_k`` adds the lists
    ``items`` and ``scores`` instead, of ``k`` items (None: what it was exported with).

    ``source``: what `open_source` takes, relative paths below ``root``, or a source. ``out``
    appears complete or not at all. ``progress``: a line on stderr, if that is a terminal. Batches
    go through encoding and the graph on as many threads as torch has at the call, each with a batch
    of its own, in bounded memory.
    Raises `InputError` for a bundle, source, column or path that cannot work, before anything is
    computed.
    """
    if isinstance(bundle, (Scorer, TopK)):
        if k is not None:
            raise InputError(f"k {k}: the bundle is open already; give k where it is opened")
        scorer: Scorer | TopK = bundle
    else:
        scorer = open_scorer(bundle, k=k)
    started = time.perf_counter()
    if isinstance(source, (str, Path, Sequence)):
        rows_in: Source = open_source(source, root, allow_empty=True, text=scorer.text)
        _check_folders(Path(out), [source] if isinstance(source, (str, Path)) else source, root)
    else:
        rows_in = source
    kept = list(dict.fromkeys(keep))
    where = rows_in.files[0]
    _check_out(Path(out), rows_in.files)
    _check_keep(kept, [field.name for field in scorer.output], rows_in.schema, where)
    scorer.check(rows_in.schema, where)
    schema = pa.schema([*(rows_in.schema.field(c) for c in kept), *scorer.output])
    line = _Line(rows_in.num_rows, show=progress and sys.stderr.isatty())
    rows = 0
    with line, write_parquet(str(out), schema) as writer:
        group: List[pa.RecordBatch] = []
        for part in _scored(scorer, rows_in, kept, batch_rows, schema):
            group.append(part)
            rows += part.num_rows
            line.update(rows)
            if sum(part.num_rows for part in group) >= GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(group))
                group.clear()
        writer.write_table(pa.Table.from_batches(group, schema))
    return ScoreReport(rows, time.perf_counter() - started)


def _scored(
    scorer: Scorer | TopK, source: Source, keep: List[str], batch_rows: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Batches of ``schema`` in the order of the source, which is read here, in one thread.

    Threads with batches of their own wait for nobody; torch's threads would meet after every
    operator of the graph, most of them too small to share.
    """
    columns = list(dict.fromkeys([*scorer.columns, *keep]))

    def work(rows: pa.RecordBatch) -> pa.RecordBatch:
        answer = scorer.answer(rows)
        return pa.record_batch([*(rows.column(name) for name in keep), *answer], schema=schema)

    threads = torch.get_num_threads()
    # torch counts threads per calling thread, its matrix library per process: one each, both ways.
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, "score", torch.set_num_threads, (1,))
    try:
        waiting: Deque[Future[pa.RecordBatch]] = deque()
        for rows in source.batches(columns, batch_rows):
            waiting.append(pool.submit(work, rows))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _check_out(out: Path, files: Sequence[str]) -> None:
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the path of the Parquet file to write")
    for file in files:
        if os.path.realpath(file) == os.path.realpath(out) or (
            out.exists() and os.path.exists(file) and os.path.samefile(file, out)
        ):
            raise InputError(f"{out} is an input file; scores would overwrite it, give another OUT")


def _check_folders(out: Path, given: Sequence[str | Path], root: str | Path | None) -> None:
    """The scores must not be taken for rows the next time that a folder is read."""
    for item in given:
        folder = os.path.realpath(os.path.join(root or ".", item))
        if os.path.isdir(folder) and os.path.realpath(out).startswith(folder + os.sep):
            raise InputError(
                f"{out} lies in the input folder {item}, and would be read as rows the next time; "
                "give an OUT elsewhere"
            )


def _check_keep(keep: Sequence[str], added: Sequence[str], schema: pa.Schema, where: str) -> None:
    for column in keep:
        if column in added:
            raise InputError(
                f"--keep {column}: the output adds a column of that name; rename yours"
            )
        if column not in schema.names:
            raise InputError(
                f"{where}: column {column!r} of --keep is missing; there are "
                f"{', '.join(schema.names)}"
            )


class _Line:
    """One line on a terminal: rows done, share, rows/s. Draws at most five times a second."""

    def __init__(self, total: int, *, show: bool) -> None:
        self._total, self._show = total, show
        self._started = self._drawn = time.perf_counter()
        self._rows = 0

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        if self._show:
            self._draw()
            sys.stderr.write("\n")

    def update(self, rows: int) -> None:
        self._rows = rows
        if self._show and time.perf_counter() - self._drawn > 0.2:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.perf_counter()
        share = self._rows / max(self._total, 1)
        rate = self._rows / max(self._drawn - self._started, 1e-9)
        sys.stderr.write(
            f"\r{self._rows:,} of {self._total:,} rows ({share:.0%}), {rate:,.0f} rows/s"
        )
        sys.stderr.flush()
