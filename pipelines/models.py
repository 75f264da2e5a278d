"""The model zoo: what each model is, how large it is, and what it needs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import nn

from recsys.build import embedding_layers
from recsys.build_sequence import sequence_model
from recsys.embeddings import build_embeddings
from recsys.embeddings.full import FullConfig
from recsys.features.item_text import ItemText
from recsys.models import MODELS
from recsys.models.papers import PAPERS
from recsys.models.sequence import SEQUENCE_MODELS
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
ITEMS, SPECIALS = 10_000, 2
WORDS = 5000
SEQUENCE_SHAPE = {"items": ITEMS, "words": WORDS, "max_length": HISTORY, "embedding_dim": 64}


def run() -> Result:
    """``{shape, models, sequence_shape, sequence_models}``: per model its paper, what it needs, and
    its trainable parameters in ``network`` and ``tables`` with default settings at the standard
    ``shape``.

    ``needs`` is ``history`` for a model that refuses fields without one; it is built with one more
    field then, a sequence that shares a categorical field's table. Models that recommend items have
    one sequence field, and none of the others.
    """
    torch.manual_seed(0)
    return {
        "shape": SHAPE,
        "models": {name: _click_model(name) for name in MODELS},
        "sequence_shape": SEQUENCE_SHAPE,
        "sequence_models": {name: _sequence_model(name) for name in SEQUENCE_MODELS},
    }


def render(result: Result) -> Group:
    """One row per model, one table per kind."""
    clicks = _table(
        "Click models: parameters at {categorical_fields} categorical fields of {ids_per_field:,} "
        "ids and {numeric_fields} numeric ones, embedding_dim {embedding_dim}, default settings",
        result["shape"],
        result["models"],
    )
    sequences = _table(
        "Models that recommend items: parameters at {items:,} items of {words:,} different words, "
        "max_length {max_length}, embedding_dim {embedding_dim}, default settings",
        result["sequence_shape"],
        result["sequence_models"],
    )
    return Group(clicks, sequences)


def _table(title: str, shape: Result, models: Result) -> Table:
    table = Table(title=title.format(**shape))
    for column in ("model", "paper", "year", "network", "tables", "needs", "what it is"):
        table.add_column(column, justify="right" if column in ("network", "tables") else "left")
    for name, model in models.items():
        table.add_row(
            name,
            f"{model['authors']}, {model['title']}",
            str(model["year"]),
            f"{model['network']:,}",
            f"{model['tables']:,}",
            model["needs"] or "",
            Text(model["summary"]),
        )
    return table


def _click_model(name: str) -> Result:
    kind = MODELS[name]
    config = kind.Config()
    fields = _fields()
    needs = None
    if _refuses(kind, config, fields):
        needs = "history"
        fields = [*fields, _history(fields[0])]
    dims = kind.tables(config, DIM)
    table = FullConfig(method="full", embedding_dim=DIM)
    _, layers = build_embeddings(table, fields, dims, train=TrainConfig())
    return _entry(name, kind(config, tuple(fields), layers), needs)


def _sequence_model(name: str) -> Result:
    kind = SEQUENCE_MODELS[name]
    config = kind.Config()
    field = FieldSpec(
        "history", "sequence", num_ids=ITEMS + SPECIALS, pooling="mean", max_length=HISTORY
    )
    table = FullConfig(method="full", embedding_dim=SEQUENCE_SHAPE["embedding_dim"])
    model = sequence_model(
        config,
        field,
        embedding=table,
        train=TrainConfig(),
        specials=SPECIALS,
        text=_text() if kind.reads_text else None,
    )
    return _entry(name, model, "item sequences" + (", text" if kind.reads_text else ""))


def _text() -> ItemText:
    """Every item is one of the words."""
    nobody, items = np.zeros(SPECIALS, np.int64), np.arange(ITEMS)
    return ItemText(
        text=np.concatenate([nobody, 1 + items]),
        ends=np.arange(1 + ITEMS),
        tokens=SPECIALS + items % WORDS,
        keys=np.zeros(ITEMS, bool),
        pieces=np.zeros(ITEMS, np.int64),
        counts=np.concatenate([nobody, np.bincount(items % WORDS)]),
    )


def _entry(name: str, model: nn.Module, needs: str | None) -> Result:
    tables = embedding_layers(model)
    looked_up = {id(weight) for layer in tables for weight in layer.parameters()}
    return {
        **PAPERS[name]._asdict(),
        "summary": (inspect.getdoc(type(model)) or "").splitlines()[0].replace("`", ""),
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
