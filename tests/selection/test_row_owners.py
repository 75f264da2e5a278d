"""Which feature owns which rows, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from recsys.embeddings import EmbeddingLayer, build_embeddings
from recsys.embeddings.full import FullConfig
from recsys.embeddings.hash import HashConfig
from recsys.embeddings.unified import UnifiedConfig
from recsys.selection.row_owners import row_owners
from recsys.settings import TrainConfig
from recsys.types import FieldSpec, InputError


def layer(config: FullConfig | HashConfig | UnifiedConfig, *fields: FieldSpec) -> EmbeddingLayer:
    _, layers = build_embeddings(config, fields, {"vectors": 4}, train=TrainConfig())
    return layers["vectors"]


def test_a_feature_owns_its_rows_and_those_that_share_them_own_none() -> None:
    found = row_owners(
        layer(
            FullConfig(method="full", embedding_dim=4),
            FieldSpec("site", "categorical", num_ids=2, counts=np.array([0, 5])),
            FieldSpec("item", "categorical", num_ids=3, counts=np.array([1, 0, 0])),
            FieldSpec("history", "sequence", num_ids=3, shares="item", counts=np.array([0, 1, 0])),
        ),
        "x",
    )
    assert found.names == ("site", "item")
    assert found.owner[0].tolist() == [0, 0, 1, 1, 1]
    assert found.met[0].tolist() == [False, True, True, True, False]
    assert found.features(0) == [0, 1]


def test_open_ids_own_the_range_that_they_hash_to() -> None:
    found = row_owners(
        layer(
            HashConfig(method="hash", embedding_dim=4, rows={"site": 3}),
            FieldSpec("item", "categorical", num_ids=2, counts=np.array([1, 0])),
            FieldSpec("site", "categorical"),
        ),
        "x",
    )
    assert found.owner[0].tolist() == [0, 0, 1, 1, 1]
    assert found.met[0].tolist() == [True, False, True, True, True]


def test_shared_rows_are_refused() -> None:
    fields = [FieldSpec(name, "categorical", num_ids=50) for name in ("site", "item")]
    config = UnifiedConfig(method="unified", embedding_dim=4, lookups=2, rows=9, exact_below=0)
    with pytest.raises(InputError, match="item and site share rows of a table"):
        row_owners(layer(config, *fields), "x")
