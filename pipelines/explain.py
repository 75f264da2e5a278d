"""Attention of a bundle's model over the fields of raw rows: which field looks at which."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Group
from rich.table import Table
from torch import Tensor

from pipelines.sample import files_by_suffix, run_of, save_figure, spread_rows
from recsys.bundle.rebuild import Rebuilt, rebuild
from recsys.training import explanations
from recsys.training.explanations import AttentionMean, Attentive, attention, top_pairs
from recsys.training.progress import Reporter, SilentReporter
from recsys.types import InputError
from serving.bundle import open_bundle
from serving.parquet import open_source, write_parquet
from serving.scorer import Scorer

Result = dict[str, Any]

_SHOWN = 15  # pairs in the table

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("layer", pa.int8()),
        ("field", pa.dictionary(pa.int32(), pa.string())),
        ("attends_to", pa.dictionary(pa.int32(), pa.string())),
        ("weight", pa.float32()),
    ]
)
"""Per-row maps: ``row`` is the row's number in the data, ``layer`` counts from 1; the weights of
one row, layer and field sum to 1."""


def run(
    bundle: Path,
    data: str | Sequence[str],
    *,
    root: str = ".",
    rows: int = 10_000,
    out: Sequence[Path] = (),
    uri: str | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Attention maps of ``rows`` raw rows, evenly spread over ``data`` (no label is needed).

    The model is built again from the bundle, and every explained row is scored by both: see
    `recsys.bundle.rebuild`. ``out``: a ``.png`` for the averaged maps, a ``.parquet`` for the maps
    of each row (`SCHEMA`). ``uri``: the store where the picture joins the bundle's run.

    Returns ``{run_id, bundle, rows, fields, attention, layers, pairs, max_abs_diff, out,
    seconds}``: ``attention`` (F, F) is the mean over rows, heads and ``layers`` (layers, F, F).
    Raises `InputError` for a bundle that cannot be rebuilt or a model without attention.
    """
    started = time.perf_counter()
    files = files_by_suffix(out, (".png", ".parquet"))
    opened = open_bundle(bundle)
    run_record = run_of(opened, uri)
    rebuilt = rebuild(opened)
    if not isinstance(rebuilt.graph.model, Attentive):
        raise InputError(
            f"{bundle}: model {rebuilt.config.model.name!r} has no attention over fields; "
            "recsys importance explains any model"
        )
    scorer = Scorer(opened)
    source = open_source(data, root, text=scorer.text)
    scorer.check(source.schema, str(source.files[0]))
    parts, places = [], []
    for first, batch, picks in spread_rows(source, scorer.columns, rows):
        parts.append(batch.take(pa.array(picks)))
        places.append(first + picks)
    table, numbers = pa.Table.from_batches(parts), np.concatenate(places)
    fields = [field.name for field in rebuilt.features.fields]
    total = AttentionMean()
    gap = 0.0
    reporter = reporter or SilentReporter()
    with (
        _maps_file(files.get(".parquet"), fields) as write,
        reporter.bar("explain", len(table)) as bar,
    ):
        for start in range(0, len(table), explanations.BATCH_ROWS):
            part = table.slice(start, explanations.BATCH_ROWS)
            maps, apart = _maps(rebuilt, scorer, part)
            total.add(maps)
            write(numbers[start : start + len(part)], maps)
            gap = max(gap, apart)
            bar.advance(len(part))
    layers = total.mean()
    title = f"{opened.manifest.get('name', bundle.name)}: {total.rows:,} rows of {source.files[0]}"
    figure = explanations.attention_figure(layers, fields, title)
    if ".png" in files:
        save_figure(figure, files[".png"])
    run_record.log_figure(figure, explanations.PICTURE)
    mean = layers.mean(axis=0)
    return {
        "run_id": opened.manifest.get("run_id"),
        "bundle": str(bundle),
        "rows": total.rows,
        "fields": fields,
        "attention": mean.tolist(),
        "layers": layers.tolist(),
        "pairs": top_pairs(mean, fields),
        "max_abs_diff": gap,
        "out": [str(path) for path in files.values()],
        "seconds": time.perf_counter() - started,
    }


def render(result: Result) -> Group:
    """The strongest pairs as a table."""
    shown = result["pairs"][:_SHOWN]
    table = Table(title=f"attention between fields, mean over {result['rows']:,} rows")
    table.add_column("pair")
    for name in ("there", "back", "both", "times uniform"):
        table.add_column(name, justify="right")
    for pair in shown:
        first, second = pair["fields"]
        table.add_row(
            f"{first} - {second}",
            *(f"{pair[key]:.4f}" for key in ("forth", "back", "weight")),
            f"{pair['lift']:.2f}",
        )
    notes = [f"strongest {len(shown)} of {len(result['pairs'])} pairs; uniform is 1 / fields"]
    notes += [f"written: {path}" for path in result["out"]]
    return Group(table, *notes)


def _maps(rebuilt: Rebuilt, scorer: Scorer, rows: pa.Table) -> tuple[Tensor, float]:
    """(B, layers, F, F), and how far the rebuilt model's scores are from the bundle's."""
    raw = scorer.encode(rows)
    apart = rebuilt.check(raw, scorer.score(raw))
    graph = rebuilt.graph
    model = graph.model
    assert isinstance(model, Attentive)
    return attention(model, graph.id_map(graph.encoder(raw))), apart


@contextmanager
def _maps_file(
    path: Path | None, fields: Sequence[str]
) -> Iterator[Callable[[np.ndarray, Tensor], None]]:
    """Yields what writes the maps of some rows to ``path``; it writes nothing without one."""
    if path is None:
        yield lambda _numbers, _maps: None
        return
    names = pa.array(fields, pa.string())

    def named(codes: np.ndarray) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), names)

    with write_parquet(path, SCHEMA) as writer:

        def write(numbers: np.ndarray, maps: Tensor) -> None:
            place, layer, field, other = (axis.ravel() for axis in np.indices(maps.shape))
            columns = [
                pa.array(numbers[place], pa.int64()),
                pa.array((layer + 1).astype(np.int8)),
                named(field),
                named(other),
                pa.array(maps.numpy().ravel(), pa.float32()),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))

        yield write
