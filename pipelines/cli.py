"""The console script ``recsys``: verbs only, each calls one pipeline."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines import cli_look, cli_many
from pipelines.cli_shared import (
    AsJson,
    CacheFolder,
    ConfigFile,
    DataRoot,
    Overrides,
    RunsFolder,
    reporter,
    show,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="CTR and recommendation models with embedding tables under a byte budget.",
)
app.add_typer(cli_many.app)
app.add_typer(cli_look.app)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where data, runs and scores go.")] = Path("demo"),
    rows: Annotated[int, typer.Option(min=1000, help="Rows of the synthetic log.")] = 240_000,
    as_json: AsJson = False,
) -> None:
    """Synthetic log -> two tracked runs -> verified bundles -> a scored Parquet file."""
    from pipelines import demo as pipeline

    result = pipeline.run(folder, rows=rows, reporter=reporter())
    show(result, as_json, pipeline.render)


@app.command()
def histories(
    train: Annotated[str, typer.Option(help="Parquet of the train split, the source of events.")],
    out: Annotated[Path, typer.Option(help="Folder of the new splits.")],
    user: Annotated[str, typer.Option(help="Column of the user.")],
    item: Annotated[str, typer.Option(help="Column of the item.")],
    time: Annotated[str, typer.Option(help="Column of the time.")],
    valid: Annotated[str | None, typer.Option(help="Parquet of the valid split.")] = None,
    test: Annotated[str | None, typer.Option(help="Parquet of the test split.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Also a history of this column of an item.")
    ] = None,
    items: Annotated[
        str | None, typer.Option(help="Parquet with the attributes, one row per item.")
    ] = None,
    of_event: Annotated[
        list[str] | None,
        typer.Option(help="Also a history of this column of the event, such as a rating."),
    ] = None,
    history: Annotated[
        list[str] | None,
        typer.Option(help="NAME or 'NAME: COLUMN >= VALUE', which events it holds."),
    ] = None,
    length: Annotated[int, typer.Option(help="Most recent events that are kept.")] = 50,
    latest: Annotated[
        bool, typer.Option("--latest", help="Also latest.parquet: one row a user, to score.")
    ] = False,
    data_root: DataRoot = ".",
    as_json: AsJson = False,
) -> None:
    """Add history columns: what the user did before each row, from the train split only."""
    from pipelines import histories as pipeline

    splits = {"train": train, "valid": valid, "test": test}
    result = pipeline.run(
        {name: paths for name, paths in splits.items() if paths is not None},
        out,
        user=user,
        item=item,
        time_column=time,
        attributes=attribute or (),
        items=items,
        of_event=of_event or (),
        histories=history or ("history",),
        length=length,
        latest=latest,
        root=data_root,
        reporter=reporter(),
    )
    show(result, as_json, pipeline.render)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    data_root: DataRoot = ".",
    out: RunsFolder = Path("runs"),
    cache: CacheFolder = None,
    as_json: AsJson = False,
) -> None:
    """Train, track, evaluate, export and verify one config; goes on from a checkpoint if any."""
    from pipelines import train as pipeline
    from recsys.config import load_config

    run_config = load_config(config, overrides or ())
    result = pipeline.run(run_config, root=data_root, out=out, cache=cache, reporter=reporter())
    show(result, as_json, pipeline.render)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Parquet to evaluate on; default: the run's split.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    data_root: DataRoot = ".",
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="Also by value of this column.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Metrics of a bundle on raw rows."""
    from pipelines import evaluate as pipeline

    result = pipeline.run(
        bundle, data=data, split=split, root=data_root, slices=slices or (), reporter=reporter()
    )
    show(result, as_json, pipeline.render)


@app.command()
def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder to export anew from its weights.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new bundle.")],
    quantise: Annotated[
        Literal["int8", "int4", "fp16"] | None, typer.Option(help="What the tables become.")
    ] = None,
    items: Annotated[
        str | None,
        typer.Option(help="Catalogue to recommend from instead, of a model that reads text."),
    ] = None,
    data_root: DataRoot = ".",
    as_json: AsJson = False,
) -> None:
    """Re-export a bundle from its manifest, features and weights, and verify it."""
    from pipelines import export as pipeline

    result = pipeline.run(
        bundle, out, root=data_root, quantise=quantise, catalogue=items, reporter=reporter()
    )
    show(result, as_json, pipeline.render)


@app.command()
def score(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    source: Annotated[str, typer.Argument(metavar="IN", help="Parquet file, folder, glob or URL.")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    keep: Annotated[str, typer.Option(help="Columns to keep, comma-separated.")] = "",
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Items a row, of a bundle that recommends.")
    ] = None,
    data_root: DataRoot = ".",
    as_json: AsJson = False,
) -> None:
    """Score Parquet to Parquet with the TorchScript bundle (same code as `python -m serving`)."""
    from serving.batch import score as score_parquet

    columns = [column.strip() for column in keep.split(",") if column.strip()]
    report = score_parquet(bundle, source, out, keep=columns, k=k, root=data_root)
    result = {
        "rows": report.rows,
        "seconds": report.seconds,
        "rows_per_second": report.rows / max(report.seconds, 1e-9),
        "out": str(out),
    }
    show(result, as_json, lambda r: f"{r['rows']:,} rows scored in {r['seconds']:.1f} s -> {out}")


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    host: Annotated[str, typer.Option(help="0.0.0.0: other machines may ask, too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Items a row, of a bundle that recommends.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Requests at a time. Default: one a core.")
    ] = None,
) -> None:
    """Answer HTTP requests with a bundle: JSON rows in, scores or items out."""
    from serving.http import serve as serve_http
    from serving.topk import open_scorer

    serve_http(open_scorer(bundle, k=k), host, port, threads)


def main() -> None:
    """Runs the command line: exit code 0, 1 (failed) or 2 (bad input, one line)."""
    # Two OpenMP pools on two cores wait for each other; torch's own is enough.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from recsys.bundle import VerifyError
    from recsys.training.trainer import Interrupted
    from serving.errors import InputError
    from serving.process import keep_freed_memory

    keep_freed_memory()
    try:
        _check_bundles(sys.argv[1:])
        app()
    except InputError as error:
        _fail(error, code=2)
    except (VerifyError, OSError) as error:  # OSError: a full disk, a missing permission
        _fail(error, code=1)
    except Interrupted as error:
        _fail(error, code=130)


def _check_bundles(words: list[str]) -> None:
    """Errors: `InputError` where a pattern stood for several bundles, as no shell says."""
    from serving.errors import InputError

    readers = ("score", "serve", "evaluate", "export", "importance", "explain")
    found = [word for word in words if (Path(word) / "manifest.json").is_file()]
    if len(found) > 1 and words[0] in readers:
        raise InputError(f"{words[0]}: {', '.join(found)} are {len(found)} bundles; name one")


def _fail(error: object, *, code: int) -> None:
    sys.stderr.write(f"recsys: {' '.join(str(error).split())}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
