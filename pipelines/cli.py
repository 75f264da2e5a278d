"""The console script ``recsys``: verbs only, each calls one pipeline."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="CTR and recommendation models with embedding tables under a byte budget.",
)
config_app = typer.Typer(no_args_is_help=True, help="Look at configs.")
app.add_typer(config_app, name="config")

ConfigFile = Annotated[Path, typer.Argument(help="YAML file of one complete run.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, for example train.max_epochs=3.")
]
DataRoot = Annotated[
    str, typer.Option(envvar="RECSYS_DATA_ROOT", help="Folder that data paths are relative to.")
]
RunsFolder = Annotated[Path, typer.Option("--out", help="Folder of runs (checkpoints, bundles).")]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="Folder of encoded data. Default: OUT/cache.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
TrackingUri = Annotated[str, typer.Option("--uri", help="MLflow tracking URI.")]
DEFAULT_URI = "sqlite:///mlflow.db"


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where data, runs and scores go.")] = Path("demo"),
    rows: Annotated[int, typer.Option(min=1000, help="Rows of the synthetic log.")] = 240_000,
    as_json: AsJson = False,
) -> None:
    """Synthetic log -> two tracked runs -> verified bundles -> a scored Parquet file."""
    from pipelines import demo as pipeline

    result = pipeline.run(folder, rows=rows, reporter=_reporter())
    _print(result, as_json, pipeline.render)


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
    result = pipeline.run(run_config, root=data_root, out=out, cache=cache, reporter=_reporter())
    _print(result, as_json, pipeline.render)


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
        bundle, data=data, split=split, root=data_root, slices=slices or (), reporter=_reporter()
    )
    _print(result, as_json, pipeline.render)


@app.command()
def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder to export anew from its weights.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new bundle.")],
    data_root: DataRoot = ".",
    as_json: AsJson = False,
) -> None:
    """Re-export a bundle from its manifest, features and weights, and verify it."""
    from pipelines import export as pipeline

    _print(pipeline.run(bundle, out, root=data_root), as_json, lambda r: f"verified: {r['bundle']}")


@app.command()
def score(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    source: Annotated[str, typer.Argument(metavar="IN", help="Parquet file, folder, glob or URL.")],
    out: Annotated[Path, typer.Argument(help="Parquet file to write.")],
    keep: Annotated[str, typer.Option(help="Columns to keep, comma-separated.")] = "",
    as_json: AsJson = False,
) -> None:
    """Score Parquet to Parquet with the TorchScript bundle (same code as `python -m serving`)."""
    from serving.batch import score as score_parquet

    columns = [column for column in keep.split(",") if column]
    report = score_parquet(bundle, source, out, keep=columns)
    result = {
        "rows": report.rows,
        "seconds": report.seconds,
        "rows_per_second": report.rows / max(report.seconds, 1e-9),
        "out": str(out),
    }
    _print(result, as_json, lambda r: f"{r['rows']:,} rows scored in {r['seconds']:.1f} s -> {out}")


@app.command()
def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Run ids or names; default: all.")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="All runs of this experiment.")] = None,
    uri: TrackingUri = DEFAULT_URI,
    split: Annotated[str, typer.Option(help="valid or test.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder for overlay plots.")] = None,
    as_json: AsJson = False,
) -> None:
    """Runs side by side, with AUC differences and their confidence intervals."""
    from pipelines import compare as pipeline

    result = pipeline.run(runs or [], experiment=experiment, uri=uri, split=split, out=out)
    _print(result, as_json, pipeline.render)


@app.command()
def ui(
    uri: TrackingUri = DEFAULT_URI,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
) -> None:
    """Start the MLflow UI on the store of the runs."""
    from pipelines import ui as pipeline

    pipeline.run(uri, port)


@app.command()
def models(as_json: AsJson = False) -> None:
    """The model zoo."""
    from recsys.models import MODELS

    result = {name: _first_line(kind) for name, kind in MODELS.items()}
    _print(result, as_json, _lines)


@app.command()
def embeddings(as_json: AsJson = False) -> None:
    """The table methods."""
    from recsys.embeddings import EMBEDDINGS

    result = {name: _first_line(kind) for name, kind in EMBEDDINGS.items()}
    _print(result, as_json, _lines)


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Check a config and print it with every default filled in."""
    import yaml

    from recsys.config import load_config

    tree = load_config(config, overrides or ()).model_dump(mode="json")
    typer.echo(yaml.safe_dump(tree, sort_keys=False).rstrip())


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configs, for editors."""
    from recsys.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


def main() -> None:
    """Runs the command line: exit code 0, 1 (failed) or 2 (bad input, one line)."""
    # Two OpenMP pools on two cores wait for each other; torch's own is enough.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from recsys.bundle import VerifyError
    from recsys.training.trainer import Interrupted
    from serving.errors import InputError

    try:
        app()
    except InputError as error:
        _fail(error, code=2)
    except VerifyError as error:
        _fail(error, code=1)
    except Interrupted as error:
        _fail(error, code=130)


def _fail(error: object, *, code: int) -> None:
    sys.stderr.write(f"recsys: {' '.join(str(error).split())}\n")
    sys.exit(code)


def _reporter() -> Any:
    from recsys.training.progress import ConsoleReporter

    return ConsoleReporter()


def _print(result: Any, as_json: bool, render: Any) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160  # a pipe has no width; tables should not be cut
    Console(highlight=False, soft_wrap=True, width=width).print(render(result))


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _lines(entries: dict[str, str]) -> str:
    width = max(map(len, entries))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in entries.items())


if __name__ == "__main__":
    main()
