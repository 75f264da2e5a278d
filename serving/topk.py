"""Histories in, the best items out: raw items and their scores, from a bundle of task ``top_k``."""

from __future__ import annotations

from pathlib import Path
from typing import List, NamedTuple, Tuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.bundle import ITEMS, Bundle, BundleDamaged, open_bundle
from serving.encode import Batch
from serving.errors import InputError
from serving.scorer import Rows, Scorer, Served, plain_inference, slices

__all__ = ["LISTS", "Recommendations", "TopK", "open_scorer"]

LISTS = ("items", "scores")
"""Names of the columns that are added to the rows: two lists of equal length, the best first."""


class Recommendations(NamedTuple):
    """Two list arrays (B,): ``items`` as they were in training (text or int), ``scores`` float32.
    A list has fewer than ``k`` items only where the catalogue has no more to offer."""

    items: pa.ListArray
    scores: pa.ListArray


class TopK(Served):
    """Recommends items to raw histories, exactly: the larger score first, then the smaller id.

    ``bundle``, ``threads``, ``batch_rows``: see `Served`. ``k``: length of the lists, None for
    what the bundle was exported with. What `recsys` calls special ids, and with the bundle's
    ``filter_seen`` every item of the history, is never recommended.

    The catalogue's vectors are prepared for search once, at opening: 5 bytes a number.

    Example::

        TopK("runs/7/bundle", k=20).recommend([{"history": [3, 9]}, {"history": []}])
    """

    task = "top_k"
    remedy = "open it with serving.scorer.Scorer"

    def __init__(
        self,
        bundle: str | Path | Bundle,
        threads: int | None = None,
        *,
        batch_rows: int = 4096,
        k: int | None = None,
    ) -> None:
        super().__init__(bundle, threads, batch_rows=batch_rows)
        self._items = _read_items(self.bundle.path / ITEMS)
        wanted = _checked(self.bundle.manifest.get("k"), "manifest") if k is None else _checked(k)
        self.k = min(wanted, len(self._items))
        kind = self._items.type
        self.output = (
            pa.field(LISTS[0], pa.list_(kind)),
            pa.field(LISTS[1], pa.list_(pa.float32())),
        )
        with plain_inference():
            self.bundle.graph.prepare()

    def recommend(self, rows: Rows, k: int | None = None) -> Recommendations:
        """The best ``k`` (None: `TopK.k`) items of each row; for errors see `Served.table`."""
        # Lists end with the catalogue, so room for more would be memory for nothing.
        wanted = self.k if k is None else min(_checked(k), len(self._items))
        parts = [
            self._lists(*self.best(self.encode(part), wanted))
            for part in slices(self.table(rows), self._batch_rows)
        ]
        items, scores = zip(*parts, strict=True)
        return Recommendations(pa.concat_arrays(items), pa.concat_arrays(scores))

    def answer(self, rows: pa.Table | pa.RecordBatch) -> List[pa.Array]:
        """Two columns: lists of items, lists of scores."""
        return list(self._lists(*self.best(self.encode(rows), self.k)))

    def best(self, batch: Batch, k: int) -> Tuple[np.ndarray, np.ndarray]:
        """Encoded ids (B, k) int64 and scores (B, k) float32 of an encoded batch, by one call of
        the graph; -1 and minus infinity where there are fewer."""
        with plain_inference():
            ids, scores = self.bundle.graph.best(
                batch.ids, batch.floats, batch.lists, batch.lengths, k
            )
        return ids.numpy(), scores.numpy()

    def _lists(self, ids: np.ndarray, scores: np.ndarray) -> Tuple[pa.ListArray, pa.ListArray]:
        return item_lists(self._items, ids, scores)


def item_lists(
    items: pa.Array, ids: np.ndarray, scores: np.ndarray
) -> Tuple[pa.ListArray, pa.ListArray]:
    """Lists of raw ``items`` (V,) and of scores, of ids (B, k) and scores (B, k) without -1."""
    there = ids >= 0
    ends = pa.array(np.concatenate([[0], there.sum(1).cumsum()]), pa.int32())
    found = items.take(pa.array(ids[there]))
    return (
        pa.ListArray.from_arrays(ends, found),
        pa.ListArray.from_arrays(ends, pa.array(scores[there], pa.float32())),
    )


def open_scorer(
    bundle: str | Path | Bundle,
    threads: int | None = None,
    *,
    batch_rows: int = 4096,
    k: int | None = None,
) -> Scorer | TopK:
    """The opened bundle as what it answers. Raises `InputError` for a ``k`` that it cannot use."""
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    if opened.task == TopK.task:
        return TopK(opened, threads, batch_rows=batch_rows, k=k)
    if k is not None:
        raise InputError(f"k is {k}, but {opened.path} scores rows and has no lists; leave k out")
    return Scorer(opened, threads, batch_rows=batch_rows)


def _checked(k: object, where: str = "k") -> int:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InputError(f"{where}: k is {k!r}; give 1 or more items a row")
    return k


def _read_items(path: Path) -> pa.Array:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise BundleDamaged(f"{path}: not readable Parquet ({error}); export again") from None
    if table.column_names != ["item"]:
        raise BundleDamaged(f"{path}: columns {table.column_names}, not item; export again")
    return table.column("item").combine_chunks()
