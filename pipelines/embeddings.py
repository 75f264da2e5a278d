"""What every table method makes of a byte budget, on the features of a config, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from pipelines.prepare import fit_features, fit_items, sequence_files
from recsys.build_sequence import table_field
from recsys.config import AnyRunConfig, SequenceRunConfig
from recsys.data import splits
from recsys.embeddings import (
    EMBEDDINGS,
    EmbeddingLayer,
    IdMap,
    TableConfig,
    TableMethod,
    build_embeddings,
)
from recsys.embeddings.budget import budget_bytes, parse_bytes
from recsys.embeddings.projected import BlocksConfig
from recsys.features import Features
from recsys.models import MODELS
from recsys.models.sequence import SEQUENCE_MODELS
from recsys.training.progress import Reporter, SilentReporter
from recsys.types import FieldSpec, InputError, MemoryReport

Result = dict[str, Any]


def run(
    config: AnyRunConfig,
    *,
    budgets: Sequence[str | float],
    methods: Sequence[str] | None = None,
    root: str = ".",
    cache: Path = Path("runs/cache"),
    reporter: Reporter | None = None,
) -> Result:
    """Solves each budget with each method (default: all of them).

    Returns ``{fields: {name: ids}, full_bytes, rows: [{method, budget, budget_bytes, feasible,
    reason, solution, trainable_params, stored_bytes, training_bytes, lookups_per_row,
    collisions}]}``.
    ``collisions``: per feature the share of its training lookups whose id has all of its rows in
    common with another id, counted, not estimated; features with open ids are left out. Keys of
    ``config.embedding`` hold for its own method; others have their defaults, but for its
    ``embedding_dim`` and one start for all.

    Errors: `InputError` for an unknown method or budgets that are none.
    """
    for spec in methods or ():
        method_of(spec)
    features = fitted(config, root=root, cache=cache, reporter=reporter or SilentReporter())
    rows = [
        _solved(config, features, method, budget)
        for budget in budgets
        for method in methods or EMBEDDINGS
    ]
    fields = table_fields(config, features)
    sizes = {field.name: field.num_ids for field in fields if field.kind != "numeric"}
    return {"fields": sizes, "full_bytes": full_bytes(config, features), "rows": rows}


def full_bytes(config: AnyRunConfig, features: Features) -> int | None:
    """Bytes of the full table; ``None`` where ids are open, so that there is none."""
    fields = table_fields(config, features)
    if any(field.kind != "numeric" and field.num_ids is None for field in fields):
        return None
    return budget_bytes(1.0, fields, layer_dims(config))


def kind_of(config: AnyRunConfig) -> str:
    """What a run does: score ``clicks`` or rank ``items``."""
    return "items" if isinstance(config, SequenceRunConfig) else "clicks"


def fitted(config: AnyRunConfig, *, root: str, cache: Path, reporter: Reporter) -> Features:
    """The features of a run of either kind."""
    if isinstance(config, SequenceRunConfig):
        files = sequence_files(config, root, cache, reporter)
        features, _ = fit_items(config, files, root, cache, reporter)
        return features
    return fit_features(config, splits(config.data, root), cache, reporter)


def table_fields(config: AnyRunConfig, features: Features) -> tuple[FieldSpec, ...]:
    """The fields that the run's tables serve."""
    if isinstance(config, SequenceRunConfig):
        return (table_field(config, features),)
    return features.fields


def layer_dims(config: AnyRunConfig) -> dict[str, int]:
    """The widths of the vectors that the model asks for, by layer."""
    zoo: dict[str, Any] = SEQUENCE_MODELS if isinstance(config, SequenceRunConfig) else MODELS
    dims: dict[str, int] = zoo[config.model.name].tables(
        config.model, config.embedding.embedding_dim
    )
    return dims


def parse_budget(text: str) -> str | float:
    """``0.1`` is a share, ``10MB`` a size.

    Errors: `InputError` for a text that is neither.
    """
    try:
        share = float(text)
    except ValueError:
        share = None
    try:
        if share is None:
            parse_bytes(text)
            return text
    except ValueError as error:
        raise InputError(f"--budget: {error}") from error
    if not 0 < share <= 1:
        raise InputError(f"--budget {text}: a share lies in (0, 1]; for bytes give a unit")
    return share


def method_of(spec: str) -> str:
    """The method of ``NAME`` or ``NAME:KEY=VALUE:...``. Errors: `InputError` if there is none."""
    name = spec.split(":")[0]
    if name not in EMBEDDINGS:
        raise InputError(f"--methods {name}: no such method; known: {', '.join(EMBEDDINGS)}")
    return name


def spec_settings(spec: str) -> tuple[str, dict[str, Any]]:
    """``NAME:KEY=VALUE:...`` as name and settings."""
    name, *settings = spec.split(":")
    pairs = (setting.partition("=") for setting in settings)
    return name, {key: yaml.safe_load(value) for key, _, value in pairs}


def table_config(config: AnyRunConfig, spec: str, budget: str | float) -> TableConfig:
    """The config of a method under ``budget``: the run's own keys if it is its method, else its
    ``embedding_dim`` and start alone, and those of ``spec``, such as ``robe:hashes=2``.

    Errors: `InputError` if the method has no such setting.
    """
    method, own = method_of(spec), config.embedding.model_dump(exclude_unset=True)
    keys = own if own["method"] == method else {"method": method, **start_of(method)}
    keys = {key: value for key, value in keys.items() if key not in SIZES}
    shared = {"init_std": config.embedding.init_std}  # one start for all, or they do not compare
    keys |= shared | spec_settings(spec)[1]
    keys |= {"embedding_dim": config.embedding.embedding_dim, "budget": budget}
    try:
        return EMBEDDINGS[method].Config.model_validate(keys)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise InputError(f"{spec}: {place}: {message}" if place else message) from error


def start_of(method: str) -> dict[str, str]:
    """What gives vectors of ``method`` the variance init_std^2 that all others start with."""
    blocks = issubclass(EMBEDDINGS[method].Config, BlocksConfig)
    return {"init": "orthonormal"} if blocks else {}


SIZES = ("rows", "compression", "alpha", "rank", "width", "parts", "collisions")
"""Keys that fix a method's size, and so give way to a budget."""


def solve(
    config: AnyRunConfig, features: Features, method: str, budget: str | float
) -> tuple[TableConfig, TableMethod]:
    """The config of ``method`` under ``budget``, and its plan; it allocates no table.

    Errors: `InputError` for a budget out of reach, naming the floor, or fields that the method
    cannot serve.
    """
    table = table_config(config, method, budget)
    return table, EMBEDDINGS[method_of(method)](
        table, table_fields(config, features), layer_dims(config)
    )


def _solved(config: AnyRunConfig, features: Features, method: str, budget: str | float) -> Result:
    fields, dims = table_fields(config, features), layer_dims(config)
    row: Result = {"method": method, "budget": budget}
    try:
        row["budget_bytes"] = budget_bytes(budget, fields, dims)
        table, plan = solve(config, features, method, budget)
        torch.manual_seed(config.seed)
        id_map, layers = build_embeddings(table, fields, dims, train=config.train)  # type: ignore[arg-type]
    except InputError as error:
        return row | {"feasible": False, "reason": str(error)}
    training = sum(layer.memory().training_bytes for layer in layers.values())
    final = [layer.finalise() for layer in layers.values()]
    total = sum((layer.memory() for layer in final), MemoryReport(0, 0, 0, 0))
    return row | {
        "feasible": True,
        "reason": None,
        "solution": plan.solution(),
        **asdict(total),
        "training_bytes": training,
        "collisions": _collisions(id_map, final[0]),
    }


def _collisions(id_map: IdMap, layer: EmbeddingLayer) -> dict[str, float]:
    shares = {}
    for f, field in enumerate(layer.fields):
        if field.num_ids is None or field.counts is None or field.shares is not None:
            continue
        ids = torch.arange(field.num_ids).unsqueeze(-1)
        rows = id_map.row_map(ids, f)  # (V, T)
        places = [layer.tables[k].rows_of(rows[:, t]) for t, k in enumerate(layer.slots(f))]
        _, group, size = np.unique(
            torch.stack(places, 1).numpy(), axis=0, return_inverse=True, return_counts=True
        )
        counts = field.counts.astype(np.float64)
        met = counts[size[group.reshape(-1)] > 1].sum()
        shares[field.name] = float(met / max(counts.sum(), 1.0))
    return shares


def render(result: Result) -> Table:
    """One line per budget and method; what is out of reach says its floor."""
    table = Table(
        title=f"{len(result['fields'])} features with ids, "
        f"{sum(n or 0 for n in result['fields'].values()):,} ids"
    )
    for title in ("budget", "method", "solved", "stored", "training", "lookups", "collisions"):
        side = "left" if title in ("method", "solved") else "right"
        table.add_column(title, justify=side)  # type: ignore[arg-type]
    for row in result["rows"]:
        if not row["feasible"]:
            table.add_row(str(row["budget"]), row["method"], Text(row["reason"], style="dim"))
            continue
        worst = max(row["collisions"].items(), key=lambda item: item[1], default=("", 0.0))
        table.add_row(
            str(row["budget"]),
            row["method"],
            ", ".join(f"{key} {_plain(value)}" for key, value in row["solution"].items()),
            f"{row['stored_bytes']:,}",
            f"{row['training_bytes']:,}",
            str(row["lookups_per_row"]),
            f"{worst[1]:.1%} ({worst[0]})" if worst[1] else "none",
        )
    table.caption = (
        "bytes: all tables of the model, index structures included; collisions: share of the "
        "training lookups of the worst feature whose id shares all its rows with another id"
    )
    return table


def _plain(value: Any) -> str:
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )
