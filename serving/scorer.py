"""Rows in, answers out, in one process."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Iterator, List, Mapping, Sequence, Tuple, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from serving.bundle import Bundle, open_bundle
from serving.encode import Batch, check_schema, encode
from serving.errors import InputError
from serving.rows import from_dicts, whole_numbers

__all__ = ["SCORE", "Rows", "Scorer", "Served"]

Rows: TypeAlias = "pa.Table | pa.RecordBatch | Sequence[Mapping[str, Any]] | Any"
"""A pyarrow table or record batch, a pandas DataFrame, or a list of dicts."""

SCORE = "score"
"""Name of the column of scores: float32 probabilities."""


class Served:
    """An opened bundle and the rows it takes; what it answers, its kind (`Scorer`, `TopK`) says.

    ``bundle``: the folder, or an opened `Bundle`. ``threads``: torch threads for this whole
    process; None leaves them as they are. ``batch_rows``: rows that go through the graph at once.
    """

    task: ClassVar[str]
    remedy: ClassVar[str]
    output: Tuple[pa.Field, ...]
    """The columns that an answer adds to the rows."""

    def __init__(
        self, bundle: str | Path | Bundle, threads: int | None = None, *, batch_rows: int = 4096
    ) -> None:
        assert batch_rows > 0
        if threads is not None:
            if threads < 1:
                raise InputError(f"threads is {threads}; give 1 or more")
            torch.set_num_threads(threads)
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        if self.bundle.task != self.task:
            raise InputError(
                f"{self.bundle.path}: the bundle answers {self.bundle.task!r}; {self.remedy}"
            )
        self.inputs = self.bundle.inputs
        self.columns = list(dict.fromkeys(field.column for field in self.inputs))
        self._integers = {field.column for field in self.inputs if field.dtype == "int"}
        self.text = frozenset(field.column for field in self.inputs if field.dtype == "text")
        self._batch_rows = batch_rows
        self._checked: pa.Schema | None = None

    def answer(self, rows: pa.Table | pa.RecordBatch) -> List[pa.Array]:
        """The columns ``output`` of rows whose schema was checked, by one call of the graph."""
        raise NotImplementedError

    def table(self, rows: Rows) -> pa.Table | pa.RecordBatch:
        """The input columns of ``rows``, checked.

        In dicts a missing key or None is null. Raises `InputError` naming the column (and the row
        of a dict) for a missing column or a type other than in training.
        """
        if isinstance(rows, (list, tuple)):
            return from_dicts(rows, self.inputs)
        if isinstance(rows, (pa.Table, pa.RecordBatch)):
            table = rows
        elif _is_frame(rows):
            table = self._from_frame(rows)
        elif hasattr(rows, "to_arrow"):  # polars
            table = rows.to_arrow()
        else:
            raise InputError(
                f"cannot score {type(rows).__name__}; give a pyarrow Table or RecordBatch, a "
                "pandas or polars DataFrame or a list of dicts"
            )
        self.check(table.schema, "rows to score")
        return table.select(self.columns) if self.columns else table

    def check(self, schema: pa.Schema, where: str) -> None:
        """Raise `InputError` unless ``schema`` fits the bundle; ``where`` is the file it is of."""
        if self._checked is None or not self._checked.equals(schema):
            check_schema(schema, self.inputs, where)
            self._checked = schema

    def encode(self, rows: pa.Table | pa.RecordBatch) -> Batch:
        """The raw `Batch` of rows whose schema was checked."""
        return encode(rows, self.inputs)

    def _from_frame(self, frame: Any) -> pa.Table:
        names = list(frame.columns)
        present = [column for column in self.columns if column in names]
        for column in present:
            if names.count(column) > 1:
                raise InputError(
                    f"column {column!r} of the DataFrame is there {names.count(column)} times; "
                    "keep one of them"
                )
        arrays: List[pa.Array] = []
        for column in present:
            try:
                array = pa.array(frame[column], from_pandas=True)
                arrays.append(whole_numbers(array) if column in self._integers else array)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"column {column!r} of the DataFrame mixes types ({reason}); give it one type"
                ) from None
        if not present:
            return pa.table({"": pa.nulls(len(frame))})
        return pa.table(arrays, names=present)


class Scorer(Served):
    """Scores raw rows with a bundle.

    ``bundle``, ``threads``, ``batch_rows``: see `Served`.

    Example::

        Scorer("runs/7/bundle").predict([{"user": "u1", "item": 17, "history": [3, 9]}])
    """

    task = "score"
    remedy = "open it with serving.topk.TopK"
    output = (pa.field(SCORE, pa.float32()),)

    def predict(self, rows: Rows) -> np.ndarray:
        """Probabilities (B,) float32, in the order of ``rows``; for errors see `Served.table`."""
        table = self.table(rows)
        parts = [self.score(self.encode(part)) for part in slices(table, self._batch_rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def answer(self, rows: pa.Table | pa.RecordBatch) -> List[pa.Array]:
        """One column of probabilities."""
        return [pa.array(self.score(self.encode(rows)))]

    def score(self, batch: Batch) -> np.ndarray:
        """Probabilities (B,) float32 of an encoded batch, by one call of the graph."""
        with plain_inference():
            scores = self.bundle.graph(batch.ids, batch.floats, batch.lists, batch.lengths)
        return scores.numpy()


@contextmanager
def plain_inference() -> Iterator[None]:
    """No gradients, and no profiling executor: its first two calls in a process cost as much as
    scoring 20,000 rows (AutoInt), and what it then finds to optimise is 3 %."""
    plain = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    with torch.inference_mode(), plain:
        yield


def slices(rows: pa.Table | pa.RecordBatch, size: int) -> Iterator[pa.Table | pa.RecordBatch]:
    """``rows`` in parts of at most ``size``; one empty part if there are none."""
    if rows.num_rows <= size:
        yield rows
        return
    for start in range(0, rows.num_rows, size):
        yield rows.slice(start, size)


def _is_frame(rows: Any) -> bool:
    # pandas is no dependency of serving: whoever has a DataFrame has imported it.
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(rows, pandas.DataFrame)
