"""Table methods and selections under byte budgets, trained on one config: one Pareto.

Every method is given the same bytes, seeds, epochs and early stopping. The plain table of the
largest width that fits is a method like any other (`full`): what compresses must beat it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.benchmark_report import read_report, summary, write_report
from pipelines.compress_report import markdown, pareto, render
from pipelines.embeddings import (
    fitted,
    full_bytes,
    kind_of,
    method_of,
    solve,
    spec_settings,
    table_fields,
)
from pipelines.grid import Grid, Job, columns_of, data_digest, needs_test
from recsys.config import AnyRunConfig, parse_config
from recsys.embeddings import EMBEDDINGS
from recsys.embeddings.budget import BudgetTooSmall
from recsys.features import Features
from recsys.selection import SELECTIONS
from recsys.training.progress import Reporter, SilentReporter
from serving.errors import InputError

__all__ = ["render", "run"]

Result = dict[str, Any]

INTEGERS = ("int8", "int16", "alpt")


def run(
    config: AnyRunConfig,
    *,
    budgets: Sequence[str | float],
    methods: Sequence[str] | None = None,
    selections: Sequence[str] = (),
    seeds: int = 1,
    root: str = ".",
    out: Path = Path("runs"),
    cache: Path | None = None,
    workers: int = 1,
    report: Path | None = None,
    picture: Path | None = None,
    command: str = "",
    bayes: float | None = None,
    reporter: Reporter | None = None,
) -> Result:
    """Trains ``config`` with every table method (``methods``, ``NAME`` or ``NAME:KEY=VALUE``;
    default: all) at every budget that it can meet, and with the ``selections``, which keep such a
    share of the weights.

    Returns ``{name, kind, ids, full_bytes, rows: [{method, budget, seeds, METRIC, METRIC_sd,
    stored_bytes, training_bytes, lookups_per_row, seconds}], infeasible: [{method, budget, floor,
    reason}], failed, metrics, markdown}``, which is also what `pipelines.advice` reads. Finished
    runs are kept in ``out/compress`` and not repeated. ``bayes``: the best possible value of the
    metric, where it is known. ``report``, ``picture``: files for the table and the Pareto.

    Errors: `InputError` for an unknown method, before anything runs.
    """
    reporter = reporter or SilentReporter()
    names = list(EMBEDDINGS) if methods is None else list(methods)
    for name in names:
        method_of(name)
    for name in selections:
        if name.split(":")[0] not in selections_of_a_share():
            known = ", ".join(selections_of_a_share())
            raise InputError(f"--selections {name}: keeps no given share; known: {known}")
    if report is not None:
        read_report(report)
    cache = cache or out / "cache"
    columns = columns_of({config.name: config})
    features = fitted(config, root=root, cache=cache, reporter=reporter)
    plans: dict[str, AnyRunConfig] = {}
    points: dict[str, tuple[str, str | float]] = {}
    infeasible: list[Result] = []
    for budget in budgets:
        for name in (*names, *selections):
            try:
                if name in selections:
                    plan = _selected(config, name, budget)
                else:
                    plan = _tabled(config, features, name, budget)
            except InputError as error:
                reason = " ".join(str(error).split())
                floor = error.floor if isinstance(error, BudgetTooSmall) else None
                left_out = {"method": name, "budget": budget, "floor": floor, "reason": reason}
                infeasible.append(left_out)
                reporter.say(f"left out: {name} at {budget}: {reason}")
                continue
            label = f"{name}@{budget}"
            plans[label], points[label] = plan, (name, budget)
    if not plans:
        raise InputError("--budgets: no method can meet any of them; see `recsys embeddings`")
    needs_test(config, config.name)
    digest = data_digest(config, root)
    jobs = [
        Job(label, plan.model_copy(update={"seed": seed}), digest)
        for label, plan in plans.items()
        for seed in range(config.seed, config.seed + seeds)
    ]
    with Grid("compress", jobs, out / "compress") as grid:
        results, failed = grid.run(
            columns, root=root, out=out, cache=cache, workers=workers, reporter=reporter
        )
        rows = []
        for label, (name, budget) in points.items():
            mine = [job for job in jobs if job.label == label and job.key in results]
            done = {job.config.seed: results[job.key] for job in mine}
            if done:
                means = {key: _mean(done, key) for key in ("training_bytes", "lookups_per_row")}
                row = summary(label, done, {}, columns) | means
                rows.append(row | {"method": name, "budget": budget})
        text = markdown(rows, infeasible, columns, command, bayes)
        if rows:
            grid.tracker.log_text(text, "compress.md")
            figure = pareto(rows, columns, config.name, bayes)
            grid.tracker.log_figure(figure, "plots/pareto.png")
            if picture is not None:
                picture.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(picture, dpi=110, bbox_inches="tight")
    if report is not None:
        write_report(report, text)
    return {
        "name": config.name,
        "kind": kind_of(config),
        "ids": sum(f.num_ids or 0 for f in table_fields(config, features) if f.kind != "numeric"),
        "full_bytes": full_bytes(config, features),
        "rows": rows,
        "infeasible": infeasible,
        "failed": failed,
        "metrics": columns._asdict(),
        "markdown": text,
    }


def selections_of_a_share() -> list[str]:
    """The selection methods that can be told which share of the weights to keep."""
    return [name for name, kind in SELECTIONS.items() if "keep" in kind.Config.model_fields]


def _tabled(
    config: AnyRunConfig, features: Features, spec: str, budget: str | float
) -> AnyRunConfig:
    """``config`` with the table method ``spec`` under ``budget``, and without selection.

    Errors: `InputError` where it cannot work or cannot meet the budget.
    """
    table, _ = solve(config, features, spec, budget)
    tree = config.model_dump(mode="json", exclude_unset=True)
    tree["embedding"] = table.model_dump(mode="json", exclude_unset=True)
    tree.pop("selection", None)
    l2 = config.train.embedding_l2
    if method_of(spec) in INTEGERS and l2.mode == "all_rows":
        # Rows kept as integers are never all in memory as floats, so only touched rows decay.
        l2_of_touched = {"value": l2.value, "mode": "touched_rows"}
        tree["train"] = {**tree.get("train", {}), "embedding_l2": l2_of_touched}
    return parse_config(tree, where=f"{spec} at {budget}")


def _selected(config: AnyRunConfig, spec: str, budget: str | float) -> AnyRunConfig:
    """``config`` with the selection ``spec``, which keeps the share ``budget``."""
    if isinstance(budget, str):
        raise InputError(f"selection {spec}: keeps a share; give the budget as one, such as 0.1")
    if budget == 1:
        raise InputError(f"selection {spec}: at a budget of 1 there is nothing to select")
    name, settings = spec_settings(spec)
    tree = config.model_dump(mode="json", exclude_unset=True)
    tree["selection"] = {"method": name, "keep": budget, **settings}
    return parse_config(tree, where=f"{spec} at {budget}")


def _mean(done: Mapping[int, Result], key: str) -> int:
    return round(float(np.mean([result["memory"][key] for result in done.values()])))
