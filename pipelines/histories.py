"""Histories for sequence features: the splits of a log again, with list columns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from recsys.data.histories import Events, check_types, write_histories
from recsys.data.history_items import Columns, Items
from recsys.data.history_spec import parse_history
from recsys.data.latest import write_latest
from recsys.features.base import ID_FAMILIES
from recsys.training.progress import Reporter, SilentReporter
from recsys.types import InputError
from serving.encode import type_family
from serving.parquet import Source, open_source

Result = dict[str, Any]

LONGEST = 32_767
"""Entries of one history: a batch of rows stays below the 2^31 values of an Arrow list column."""


def run(
    splits: dict[str, str],
    out: Path,
    *,
    user: str,
    item: str,
    time_column: str,
    attributes: Sequence[str] = (),
    of_event: Sequence[str] = (),
    items: str | None = None,
    histories: Sequence[str] = ("history",),
    length: int = 50,
    latest: bool = False,
    root: str = ".",
    reporter: Reporter | None = None,
) -> Result:
    """Writes ``out/SPLIT.parquet`` for each of ``splits`` (name -> data; ``train`` must be there).

    See `recsys.data.histories` for the rule, `parse_history` for the form of ``histories``.
    ``latest``: writes ``out/latest.parquet`` too, each user of train with its last events.
    Returns ``{out, rows, histories, seconds}``, histories by split: mean length, share of empty.
    """
    started = time.perf_counter()
    reporter = reporter or SilentReporter()
    if not 1 <= length <= LONGEST:
        raise InputError(f"--length {length}: must be from 1 to {LONGEST:,}")
    parsed = [parse_history(text) for text in histories]
    names = [history.name for history in parsed]
    if len(set(names)) != len(names):
        raise InputError(f"--history: names must differ, got {', '.join(names)}")
    copied = [item, *attributes, *of_event]
    twice = {name for name in copied if copied.count(name) > 1}
    if twice:
        raise InputError(
            f"--attribute, --of-event: column {min(twice)!r} is there more than once (the item "
            "is a history by itself); name it once"
        )
    columns = Columns(user, item, time_column, tuple(attributes), tuple(of_event))
    sources = {
        name: open_source(paths, root, allow_empty=name != "train")
        for name, paths in splits.items()
    }
    _check_targets([*sources, "latest"] if latest else [*sources], sources, out)
    schema = sources["train"].schema
    for name in of_event:
        if name in schema.names and type_family(schema.field(name).type, name) not in ID_FAMILIES:
            raise InputError(
                f"--of-event {name}: is {schema.field(name).type}, and a history holds ids; cast "
                "the column to text, or to whole numbers"
            )
    for source in sources.values():
        check_types(source, sources["train"], columns)
    table = Items(open_source(items, root), columns) if items is not None else None
    events = {}
    for history in parsed:
        with reporter.bar(f"read {history.name}", sources["train"].num_rows) as bar:
            events[history.name] = Events(
                sources["train"], columns, history.where, table, bar.advance
            )
    found = {}
    for name, source in sources.items():
        with reporter.bar(f"write {name}", source.num_rows) as bar:
            found[name] = write_histories(
                source,
                out / f"{name}.parquet",
                events,
                columns,
                length=length,
                items=table,
                progress=bar.advance,
            )
    rows = {name: source.num_rows for name, source in sources.items()}
    if latest:
        with reporter.bar("write latest", rows["train"]) as bar:
            rows["latest"], found["latest"] = write_latest(
                sources["train"],
                out / "latest.parquet",
                events,
                columns,
                length=length,
                progress=bar.advance,
            )
    return {
        "out": {name: str(out / f"{name}.parquet") for name in rows},
        "rows": rows,
        "histories": found,
        "seconds": time.perf_counter() - started,
    }


def render(result: Result) -> Table:
    """One row per split and history."""
    table = Table("split", "rows", "history", "mean length", "empty")
    for split, histories in result["histories"].items():
        for name, numbers in histories.items():
            table.add_row(
                result["out"][split],
                f"{result['rows'][split]:,}",
                name,
                f"{numbers['mean_length']:.1f}",
                f"{numbers['empty_share']:.1%}",
            )
    return table


def _check_targets(names: Sequence[str], sources: dict[str, Source], out: Path) -> None:
    for name in names:
        target = (out / f"{name}.parquet").resolve()
        for source in sources.values():
            if any(Path(file).resolve() == target for file in source.files):
                raise InputError(
                    f"--out {out}: would overwrite {target}, which is read; choose another folder"
                )
