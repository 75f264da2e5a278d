"""The model zoo: what each model is, how large it is, and what it needs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from recsys.embeddings import EmbeddingLayer, build_embeddings
from recsys.embeddings.full import FullConfig
from recsys.models import MODELS
from recsys.models.papers import PAPERS
from recsys.settings import TrainConfig
from recsys.types import FieldSpec

Result = dict[str, Any]

# Criteo's shape, with vocabularies that are easy to multiply by.
CATEGORICALS, IDS, NUMERICS, DIM, HISTORY = 26, 1000, 13, 16, 50
SHAPE = {
    "categorical_fields": CATEGORICALS,
    "ids_per_field": IDS,
    "numeric_fields": NUMERICS,
    "embedding_dim": DIM,
}


def run() -> Result:
    """``{shape, models}``: per model its paper, what it needs, and its trainable parameters in
    ``network`` and ``tables`` with default settings at the standard ``shape``.

    ``needs`` is ``history`` for a model that refuses fields without one; it is built with one more
    field then, a sequence that shares a categorical field's table.
    """
    torch.manual_seed(0)
    return {"shape": SHAPE, "models": {name: _entry(name) for name in MODELS}}


def render(result: Result) -> Table:
    """One row per model."""
    shape = result["shape"]
    table = Table(
        title="Parameters at {categorical_fields} categorical fields of {ids_per_field:,} ids and "
        "{numeric_fields} numeric ones, embedding_dim {embedding_dim}, default settings".format(
            **shape
        )
    )
    for column in ("model", "paper", "year", "network", "tables", "needs", "what it is"):
        table.add_column(column, justify="right" if column in ("network", "tables") else "left")
    for name, model in result["models"].items():
        table.add_row(
            name,
            f"{model['authors']}, {model['title']}",
            str(model["year"]),
            f"{model['network']:,}",
            f"{model['tables']:,}",
            model["needs"] or "",
            escape(model["summary"]),
        )
    return table


def _entry(name: str) -> Result:
    kind, paper = MODELS[name], PAPERS[name]
    config = kind.Config()
    fields = _fields()
    needs = None
    if _refuses(kind, config, fields):
        needs = "history"
        fields = [*fields, _history(fields[0])]
    dims = kind.tables(config, DIM)
    table = FullConfig(method="full", embedding_dim=DIM)
    _, layers = build_embeddings(table, fields, dims, train=TrainConfig())
    model = kind(config, tuple(fields), layers)
    tables = [layer for layer in model.modules() if isinstance(layer, EmbeddingLayer)]
    looked_up = {id(weight) for layer in tables for weight in layer.parameters()}
    return {
        **paper._asdict(),
        "summary": (inspect.getdoc(kind) or "").splitlines()[0].replace("`", ""),
        "needs": needs,
        "network": sum(p.numel() for p in model.parameters() if id(p) not in looked_up),
        "tables": sum(layer.memory().trainable_params for layer in tables),
    }


def _refuses(kind: type[Any], config: Any, fields: Sequence[FieldSpec]) -> bool:
    check = getattr(kind, "check", None)
    if check is None:
        return False
    try:
        check(config, fields)
    except ValueError:
        return True
    return False


def _fields() -> list[FieldSpec]:
    ids = [FieldSpec(f"c{i + 1}", "categorical", num_ids=IDS) for i in range(CATEGORICALS)]
    return ids + [FieldSpec(f"x{i + 1}", "numeric") for i in range(NUMERICS)]


def _history(candidate: FieldSpec) -> FieldSpec:
    return FieldSpec(
        "history",
        "sequence",
        num_ids=candidate.num_ids,
        shares=candidate.name,
        pooling="mean",
        max_length=HISTORY,
    )
