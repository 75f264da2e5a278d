"""Every model and every table method obeys every law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recsys.embeddings import EMBEDDINGS
from recsys.models import MODELS
from recsys.testing import MODEL_LAWS, TABLE_LAWS, Law, world
from recsys.testing.models import (
    check_any_batch_size,
    check_learns_a_planted_interaction,
    check_script_equals_eager,
    planted_auc,
)

TABLES: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "embedding_dim": 8},
    "hash": {"method": "hash", "embedding_dim": 8, "budget": 0.7, "exact_below": 4},
    "double_hash": {
        "method": "double_hash",
        "embedding_dim": 8,
        "budget": 0.7,
        "exact_below": 4,
    },
    "frequency": {"method": "frequency", "embedding_dim": 8, "budget": 0.7, "exact_below": 4},
    "managed": {"method": "managed", "embedding_dim": 8, "rows": 12},
    "unified": {"method": "unified", "embedding_dim": 8, "lookups": 2, "budget": 0.7},
    "robe": {"method": "robe", "embedding_dim": 8, "rows": 40, "sign": True},
    "tensor_train": {"method": "tensor_train", "embedding_dim": 8, "rank": 2},
    "hashed_mlp": {"method": "hashed_mlp", "embedding_dim": 8, "hashes": 8, "width": 16},
    "quotient_remainder": {"method": "quotient_remainder", "embedding_dim": 8, "m": 3},
    "mixed_dim": {"method": "mixed_dim", "embedding_dim": 8, "budget": 0.8},
    "low_rank": {"method": "low_rank", "embedding_dim": 8, "budget": 0.8},
    "product_quant": {"method": "product_quant", "embedding_dim": 8, "centroids": 4},
    "int8": {"method": "int8", "embedding_dim": 8},
    "int16": {"method": "int16", "embedding_dim": 8, "scale": 0.01},
    "alpt": {"method": "alpt", "embedding_dim": 8},
}


def test_every_table_method_has_a_case() -> None:
    assert set(TABLES) == set(EMBEDDINGS)


@pytest.mark.parametrize("law", MODEL_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_model(name: str, law: Law, tmp_path: Path) -> None:
    law(world(tmp_path, model=MODELS[name].example()))


@pytest.mark.parametrize("law", TABLE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("method", TABLES)
def test_table_method(method: str, law: Law, tmp_path: Path) -> None:
    law(world(tmp_path, model={"name": "deepfm", "hidden_units": [8]}, embedding=TABLES[method]))


@pytest.mark.parametrize("method", TABLES)
@pytest.mark.parametrize("name", MODELS)
def test_model_with_every_table_method(name: str, method: str, tmp_path: Path) -> None:
    table = {key: value for key, value in TABLES[method].items() if key != "budget"}
    sized = {
        "hash": {"compression": 0.7},
        "double_hash": {"compression": 0.7},
        "frequency": {"compression": 0.7},
        "unified": {"rows": 40},
        "mixed_dim": {"alpha": 0.3},
    }
    embedding = {**table, **sized.get(method, {})}
    combined = world(tmp_path, model=MODELS[name].example(), embedding=embedding)
    check_any_batch_size(combined)
    check_script_equals_eager(combined)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "lr"])
def test_interactions_are_learned(name: str, tmp_path: Path) -> None:
    check_learns_a_planted_interaction(world(tmp_path, model=MODELS[name].example()))


def test_logistic_regression_cannot_learn_interactions(tmp_path: Path) -> None:
    assert 0.4 < planted_auc(world(tmp_path, model={"name": "lr"})) < 0.6
