"""Bundles that recommend: raw histories in, the ids and scores of the best items out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from recsys.bundle.folder import in_service, record_proof, staged, write
from recsys.bundle.stress import stress_rows
from recsys.bundle.topk_graph import TopKGraph
from recsys.bundle.verify import BATCH_ROWS, VerifyError, VerifyReport, answers_elsewhere
from recsys.features import Features
from recsys.models.sequence.items import ItemModel
from serving.bundle import ITEMS, read_manifest
from serving.encode import InputField, encode
from serving.topk import LISTS, item_lists

__all__ = ["expected_lists", "export_top_k", "verify_top_k"]


def export_top_k(
    model: ItemModel,
    encoder: nn.Module,
    inputs: Sequence[InputField],
    out: str | Path,
    *,
    items: pa.Array[Any],
    k: int,
    filter_seen: bool,
    manifest: Mapping[str, Any],
    features: Features | None = None,
    rows: pa.Table,
    tolerance: float = 1e-6,
) -> VerifyReport:
    """Write the bundle of a finalised sequence ``model`` to ``out``, once it is proved.

    ``items``: (V,) raw item of each encoded id, text or int; null for special ids. ``k``: length
    of the lists unless a caller asks otherwise. ``filter_seen``: items of a row's history are
    never recommended. ``manifest``, ``features``, ``rows``: as in
    `recsys.bundle.export_verified`; the proof is `verify_top_k`, and ``out`` appears complete and
    proved, or not at all.
    """
    assert k > 0
    specials, bias = model.specials, model.item_bias()
    assert len(items) == len(bias), f"{len(items)} items for {len(bias)} ids"
    assert items.slice(specials).null_count == 0, "an id that can be recommended has no raw item"
    tested = stress_rows(rows, inputs)
    graph = TopKGraph(encoder=encoder, model=model, k=k, filter_seen=filter_seen)
    extra = {**manifest, "task": "top_k", "k": k, "filter_seen": filter_seen}
    with staged(Path(out)) as folder, in_service(graph):
        pq.write_table(pa.table({"item": items}), folder / ITEMS)
        content = write(graph, inputs, folder, output=_output(k), extra=extra, features=features)
        expected = expected_lists(graph, inputs, tested, items)
        report = verify_top_k(folder, tested, expected, tolerance=tolerance)
        record_proof(folder, content, report.proof(tolerance))
    return report


def expected_lists(
    graph: TopKGraph, inputs: Sequence[InputField], rows: pa.Table, items: pa.Array[Any]
) -> pa.Table:
    """Columns ``items`` and ``scores`` of raw ``rows`` by the eager modules of this process."""
    found = []
    with torch.inference_mode():
        for start in range(0, max(rows.num_rows, 1), BATCH_ROWS):
            ids, scores = graph(*encode(rows.slice(start, BATCH_ROWS), inputs))
            lists = item_lists(items, ids.numpy(), scores.numpy())
            found.append(pa.record_batch(list(lists), names=list(LISTS)))
    return pa.Table.from_batches(found)


def verify_top_k(
    path: str | Path, rows: pa.Table, expected: pa.Table, *, tolerance: float = 1e-6
) -> VerifyReport:
    """Ask the bundle at ``path`` in a fresh process, as `recsys.bundle.verify` does, and compare.

    Raises `VerifyError` naming the row unless every list has the same items in the same order and
    every score is within ``tolerance`` of ``expected``, relative to scores above 1.
    """
    started = time.perf_counter()
    assert expected.num_rows == rows.num_rows
    read_manifest(path)
    with tempfile.TemporaryDirectory(prefix="recsys-verify-") as folder:
        got = answers_elsewhere(Path(path).resolve(), rows, Path(folder))
    if got.num_rows != expected.num_rows:
        raise VerifyError(f"{path}: {got.num_rows} lists for {expected.num_rows} rows")
    ours, theirs = (table.column("items").to_pylist() for table in (expected, got))
    for row, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine != other:
            raise VerifyError(
                f"{path}: row {row} is recommended {other} by the bundle but {mine} live; the "
                "bundle was not published"
            )
    live, elsewhere = (_flat(table.column("scores")) for table in (expected, got))
    difference = np.abs(live - elsewhere)
    wrong = ~(difference <= tolerance * np.maximum(1, np.abs(live)))  # NaN too
    if wrong.any():
        lengths = np.array([len(mine) for mine in ours])
        row = int(np.searchsorted(lengths.cumsum(), np.argmax(wrong), side="right"))
        raise VerifyError(
            f"{path}: row {row} scores {elsewhere[wrong][0]!r} from the bundle but "
            f"{live[wrong][0]!r} live, {int(wrong.sum())} of {len(live)} scores differ by more "
            f"than {tolerance}; the bundle was not published"
        )
    seconds = time.perf_counter() - started
    return VerifyReport(float(difference.max(initial=0)), got.num_rows, seconds)


def _flat(lists: pa.ChunkedArray[Any]) -> np.ndarray:
    return lists.combine_chunks().flatten().to_numpy().astype(np.float64)


def _output(k: int) -> list[dict[str, Any]]:
    shape = ["B", k]
    ids = "encoded item, the best first, ties by smaller id; -1 for none; row of items.parquet"
    return [
        {"name": "ids", "dtype": "int64", "shape": shape, "meaning": ids},
        {
            "name": "scores",
            "dtype": "float32",
            "shape": shape,
            "meaning": "score, higher is better",
        },
    ]
