"""Verbs that train many models: grids of runs and searches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_shared import (
    AsJson,
    CacheFolder,
    ConfigFile,
    DataRoot,
    Overrides,
    RunsFolder,
    command_line,
    reporter,
    show,
)

app = typer.Typer()


@app.command()
def benchmark(
    configs: Annotated[list[Path], typer.Argument(help="YAML files of complete runs.")],
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per config, from its own on.")] = 3,
    overrides: Overrides = None,
    published: Annotated[
        Path | None, typer.Option(help="YAML of CONFIG: {METRIC: value, source}.")
    ] = None,
    data_root: DataRoot = ".",
    out: RunsFolder = Path("runs"),
    cache: CacheFolder = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    report: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Configs x seeds: mean and spread of test metrics beside published values; resumable."""
    from pipelines import benchmark as pipeline

    result = pipeline.run(
        configs,
        seeds=seeds,
        overrides=overrides or (),
        published=published,
        root=data_root,
        out=out,
        cache=cache,
        workers=workers,
        report=report,
        command=command_line(),
        reporter=reporter(),
    )
    show(result, as_json, pipeline.render)
    if result["failed"]:
        raise typer.Exit(1)


@app.command()
def nas(
    config: ConfigFile,
    space: Annotated[str, typer.Option(help="Operators: small or full.")] = "full",
    blocks: Annotated[int, typer.Option(help="Of a network.")] = 4,
    epochs: Annotated[int, typer.Option(help="Of the shared weights.")] = 4,
    batch_size: Annotated[int, typer.Option(help="Of the search alone.")] = 512,
    population: Annotated[int, typer.Option(help="Networks alive.")] = 32,
    generations: Annotated[int, typer.Option(help="Of 8 new networks each.")] = 16,
    share: Annotated[float, typer.Option(help="Of train, to judge networks by.")] = 0.2,
    top: Annotated[int, typer.Option(help="Networks to write.")] = 3,
    overrides: Overrides = None,
    data_root: DataRoot = ".",
    out: RunsFolder = Path("runs"),
    cache: CacheFolder = None,
    as_json: AsJson = False,
) -> None:
    """Search networks of NASRec: shared weights, evolution, and a config of each of the best."""
    from pipelines import nas as pipeline
    from recsys.config import load_config

    search = pipeline.Search(
        space=space,
        blocks=blocks,
        epochs=epochs,
        batch_size=batch_size,
        population=population,
        generations=generations,
        share=share,
        top=top,
    )
    run_config = load_config(config, overrides or ())
    result = pipeline.run(
        run_config, search, root=data_root, out=out, cache=cache, reporter=reporter()
    )
    show(result, as_json, pipeline.render)


@app.command()
def tune(
    config: ConfigFile,
    space: Annotated[Path, typer.Argument(help="YAML of KEY: list, or low, high, log.")],
    trials: Annotated[int, typer.Option(min=1, help="In all; more later go on.")] = 20,
    prune: Annotated[bool, typer.Option(help="Cut trials that stay behind the median.")] = True,
    overrides: Overrides = None,
    data_root: DataRoot = ".",
    out: RunsFolder = Path("runs"),
    cache: CacheFolder = None,
    as_json: AsJson = False,
) -> None:
    """Search settings: trials judged on valid, and a config of the best; resumable."""
    from pipelines import tune as pipeline
    from recsys.config import load_config

    result = pipeline.run(
        load_config(config, overrides or ()),
        space,
        trials=trials,
        prune=prune,
        root=data_root,
        out=out,
        cache=cache,
        reporter=reporter(),
    )
    show(result, as_json, pipeline.render)


@app.command()
def compress(
    config: ConfigFile,
    budgets: Annotated[
        str, typer.Option(help="Shares of the full table or sizes, by comma: 0.5,0.1,10MB.")
    ] = "0.5,0.1,0.01",
    methods: Annotated[
        str, typer.Option(help="Table methods, by comma, or all; robe:hashes=2 sets a key.")
    ] = "all",
    selections: Annotated[str, typer.Option(help="Selection methods, by comma, or none.")] = "none",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per point, from its own on.")] = 1,
    overrides: Overrides = None,
    data_root: DataRoot = ".",
    out: RunsFolder = Path("runs"),
    cache: CacheFolder = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 1,
    report: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG file to write.")] = None,
    best: Annotated[float | None, typer.Option(help="Best possible AUC, where known.")] = None,
    as_json: AsJson = False,
) -> None:
    """Table methods under byte budgets: one Pareto of AUC against bytes; resumable."""
    from pipelines import compress as pipeline
    from pipelines.embeddings import parse_budget
    from recsys.config import load_config

    result = pipeline.run(
        load_config(config, overrides or ()),
        budgets=[parse_budget(text) for text in budgets.split(",")],
        methods=None if methods == "all" else methods.split(","),
        selections=[] if selections == "none" else selections.split(","),
        seeds=seeds,
        root=data_root,
        out=out,
        cache=cache,
        workers=workers,
        report=report,
        picture=picture,
        command=command_line(),
        bayes=best,
        reporter=reporter(),
    )
    show(result, as_json, pipeline.render)
    if result["failed"]:
        raise typer.Exit(1)
