"""Verbs that look at what is there: runs, models, table methods, configs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_shared import (
    DEFAULT_URI,
    AsJson,
    CacheFolder,
    ConfigFile,
    DataRoot,
    Overrides,
    RunsFolder,
    TrackingUri,
    reporter,
    show,
)
from serving.errors import InputError

BundleFolder = Annotated[Path, typer.Argument(help="Bundle folder.")]
RawRows = Annotated[
    str, typer.Argument(metavar="DATA", help="Parquet file, folder, glob or URL of raw rows.")
]
RunUri = Annotated[
    str | None, typer.Option("--uri", help="MLflow store where the picture joins the bundle's run.")
]

app = typer.Typer()
config_app = typer.Typer(no_args_is_help=True, help="Look at configs.")
app.add_typer(config_app, name="config")


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
    show(result, as_json, pipeline.render)


@app.command()
def explain(
    bundle: BundleFolder,
    data: RawRows,
    rows: Annotated[int, typer.Option(min=1, help="Rows, evenly spread over DATA.")] = 10_000,
    out: Annotated[
        list[Path] | None, typer.Option(help="FILE.png: averaged maps; FILE.parquet: of each row.")
    ] = None,
    uri: RunUri = None,
    data_root: DataRoot = ".",
    as_json: AsJson = False,
) -> None:
    """Attention maps of AutoInt: which field looks at which, per row and averaged."""
    from pipelines import explain as pipeline

    result = pipeline.run(
        bundle, data, root=data_root, rows=rows, out=out or (), uri=uri, reporter=reporter()
    )
    show(result, as_json, pipeline.render)


@app.command()
def importance(
    bundle: BundleFolder,
    data: RawRows,
    rows: Annotated[int, typer.Option(min=1, help="Rows, evenly spread over DATA.")] = 20_000,
    repeats: Annotated[int, typer.Option(min=1, help="Shuffles of each column.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the shuffles.")] = 0,
    out: Annotated[list[Path] | None, typer.Option(help="FILE.png: the bars.")] = None,
    uri: RunUri = None,
    data_root: DataRoot = ".",
    as_json: AsJson = False,
) -> None:
    """What shuffling each column costs in AUC and logloss, with confidence intervals; any model."""
    from pipelines import importance as pipeline

    result = pipeline.run(
        bundle,
        data,
        root=data_root,
        rows=rows,
        repeats=repeats,
        seed=seed,
        out=out or (),
        uri=uri,
        reporter=reporter(),
    )
    show(result, as_json, pipeline.render)


@app.command()
def outrank(
    config: ConfigFile,
    rows: Annotated[int, typer.Option(min=1, help="Rows, evenly spread over train.")] = 200_000,
    crosses: Annotated[
        int, typer.Option(min=0, help="Pairs of features to score as one, in each batch.")
    ] = 0,
    batch_rows: Annotated[int, typer.Option(min=2, help="Rows of a batch.")] = 16_384,
    seed: Annotated[int, typer.Option(min=0, help="Of the random columns.")] = 0,
    overrides: Overrides = None,
    data_root: DataRoot = ".",
    as_json: AsJson = False,
) -> None:
    """Features by what they say about the label, before training; noise is named (OutRank)."""
    from pipelines import outrank as pipeline
    from recsys.config import load_config

    result = pipeline.run(
        load_config(config, overrides or ()),
        rows=rows,
        batch_rows=batch_rows,
        crosses=crosses,
        seed=seed,
        root=data_root,
        reporter=reporter(),
    )
    show(result, as_json, pipeline.render)


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
    """The model zoo: papers, parameters at a standard shape, and what each model needs."""
    from pipelines import models as pipeline

    show(pipeline.run(), as_json, pipeline.render)


@app.command()
def embeddings(
    config: Annotated[
        Path | None, typer.Argument(help="YAML file of a run: solve budgets on its features.")
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="Bytes (10MB) or a share of the full table (0.1).")
    ] = None,
    methods: Annotated[
        str | None, typer.Option(help="Table methods, by comma. Default: all.")
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Recommend one method per budget, and say why.")
    ] = False,
    evidence: Annotated[
        list[Path] | None,
        typer.Option(help="What `recsys compress --json` printed; default: shipped results."),
    ] = None,
    overrides: Overrides = None,
    data_root: DataRoot = ".",
    out: RunsFolder = Path("runs"),
    cache: CacheFolder = None,
    as_json: AsJson = False,
) -> None:
    """The table methods; with a config, what each makes of a byte budget, without training."""
    if config is None:
        if auto or budget or methods or evidence or overrides:
            raise InputError("recsys embeddings: these options need a CONFIG; give its YAML file")
        from recsys.embeddings import EMBEDDINGS

        show({name: _first_line(kind) for name, kind in EMBEDDINGS.items()}, as_json, _lines)
        return
    from pipelines import advice
    from pipelines import embeddings as pipeline
    from recsys.config import load_config

    budgets = [pipeline.parse_budget(text) for text in budget or ["1.0", "0.5", "0.1", "0.01"]]
    if auto:
        if methods:
            raise InputError("--methods: --auto chooses among all that were measured; leave it out")
        found = advice.run(
            load_config(config, overrides or ()),
            budgets=budgets,
            evidence=evidence or (),
            root=data_root,
            cache=cache or out / "cache",
            reporter=reporter(),
        )
        show(found, as_json, advice.render)
        return
    result = pipeline.run(
        load_config(config, overrides or ()),
        budgets=budgets,
        methods=methods.split(",") if methods else None,
        root=data_root,
        cache=cache or out / "cache",
        reporter=reporter(),
    )
    show(result, as_json, pipeline.render)


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Check a config and print it with every default filled in."""
    import yaml

    from recsys.config import load_config

    tree = load_config(config, overrides or ()).model_dump(mode="json")
    typer.echo(yaml.safe_dump(tree, sort_keys=False).rstrip())


@config_app.command("schema")
def config_schema(
    sequences: Annotated[
        bool, typer.Option("--sequences", help="Of runs of item-sequence models.")
    ] = False,
) -> None:
    """Print the JSON schema of configs, for editors."""
    from recsys.config import RunConfig, SequenceRunConfig

    kind = SequenceRunConfig if sequences else RunConfig
    typer.echo(json.dumps(kind.model_json_schema(), indent=2))


@config_app.command("reference")
def config_reference() -> None:
    """Print every key with its type, default and meaning, as Markdown."""
    from pipelines import reference

    typer.echo(reference.run(), nl=False)


def _first_line(kind: type) -> str:
    """What the file of a method says it is."""
    page = sys.modules[kind.__module__].__doc__ or ""
    return " ".join(page.strip().split("\n\n")[0].split())


def _lines(entries: dict[str, str]) -> str:
    width = max(map(len, entries))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in entries.items())
