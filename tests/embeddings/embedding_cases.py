"""Small fields, batches and configs that the embedding tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from recsys.embeddings import EmbeddingConfig, EmbeddingLayer, IdMap, build_embeddings
from recsys.settings import TrainConfig
from recsys.types import Batch, FieldSpec

FIELDS = (
    FieldSpec("color", "categorical", num_ids=10, counts=np.arange(10, 0, -1)),
    FieldSpec("shop", "categorical", num_ids=300, counts=np.arange(300, 0, -1)),
    FieldSpec("item", "categorical", num_ids=2000, counts=np.arange(2000, 0, -1)),
    FieldSpec("price", "numeric"),
    FieldSpec("bins", "numeric", width=3),
    FieldSpec("history", "sequence", num_ids=2000, shares="item", pooling="mean", max_length=4),
    FieldSpec("tags", "bag", num_ids=50, pooling="sum", max_length=3),
)
DIMS = {"main": 16, "first_order": 1}

CONFIGS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full-budget": {"method": "full", "budget": 0.5},
    "hash": {"method": "hash", "compression": 0.1},
    "hash-budget": {"method": "hash", "budget": "60KB"},
    "hash-rows": {"method": "hash", "rows": {"item": 100}, "budget": "30KB"},
    "double_hash": {"method": "double_hash", "compression": 0.1},
    "double_hash-budget": {"method": "double_hash", "budget": "60KB", "lookups": 3},
    "double_hash-concat": {"method": "double_hash", "rows": 30, "operation": "concat"},
    "frequency": {"method": "frequency", "compression": 0.2},
    "frequency-budget": {"method": "frequency", "budget": "60KB", "own": 0.8},
    "frequency-one": {"method": "frequency", "rows": 300, "lookups": 1},
    "managed": {"method": "managed", "rows": 1200},
    "managed-budget": {"method": "managed", "budget": "100KB", "eviction": "lru"},
    "managed-some": {"method": "managed", "rows": {"shop": 200}, "budget": "110KB"},
    "quotient_remainder": {"method": "quotient_remainder", "m": 7},
    "quotient_remainder-budget": {"method": "quotient_remainder", "budget": "60KB"},
    "quotient_remainder-add": {"method": "quotient_remainder", "m": 5, "operation": "add"},
    "quotient_remainder-concat": {
        "method": "quotient_remainder",
        "m": 5,
        "operation": "concat",
        "partitions": 4,
    },
    "quotient_remainder-three": {"method": "quotient_remainder", "m": 6, "partitions": 3},
    "unified": {"method": "unified", "rows": 500},
    "unified-budget": {"method": "unified", "budget": "60KB", "lookups": 4},
    "unified-uneven": {"method": "unified", "rows": 500, "lookups": {"item": 4, "shop": 1}},
    "unified-no-exact": {"method": "unified", "rows": 500, "exact_below": 0},
    "robe": {"method": "robe", "rows": 500},
    "robe-budget": {"method": "robe", "budget": "60KB", "hashes": 2, "sign": True},
    "tensor_train": {"method": "tensor_train", "rank": 3},
    "tensor_train-budget": {"method": "tensor_train", "budget": 0.3},
    "hashed_mlp": {"method": "hashed_mlp", "hashes": 16, "width": 8},
    "hashed_mlp-budget": {"method": "hashed_mlp", "hashes": 16, "budget": 0.3},
    "int8": {"method": "int8", "init_std": 0.05},
    "int8-budget": {"method": "int8", "budget": 0.2},
    "int16-one": {"method": "int16", "scale": 0.001, "init_std": 0.05},
    "alpt": {"method": "alpt", "init_std": 0.05},
    "low_rank": {"method": "low_rank"},
    "low_rank-budget": {"method": "low_rank", "budget": 0.4},
    "product_quant": {"method": "product_quant", "centroids": 32},
    "product_quant-budget": {"method": "product_quant", "budget": 0.2},
    "product_quant-tail": {
        "method": "product_quant",
        "parts": 8,
        "centroids": 20,
        "head": 0.1,
        "tail_centroids": 6,
    },
    "mixed_dim": {"method": "mixed_dim"},
    "mixed_dim-budget": {"method": "mixed_dim", "budget": 0.4},
    "mixed_dim-fixed": {
        "method": "mixed_dim",
        "budget": 0.4,
        "init": "orthonormal",
        "projections": "fixed",
    },
    "mixed_dim-blocks": {
        "method": "mixed_dim",
        "alpha": 0.5,
        "blocks": {"item": {"cuts": [0.2, 0.6]}, "shop": {"by": "ids", "cuts": [0.1]}},
    },
}


def same(a: torch.Tensor, b: torch.Tensor, name: str) -> None:
    """Equal to the bit, or, where products of matrices make vectors, but for their rounding, which
    depends on how many there are."""
    tolerance = 1e-5 if name.startswith(("tensor_train", "hashed_mlp")) else 0.0
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * 1e-4)


def config(name_or_tree: str | dict[str, Any]) -> Any:
    tree = CONFIGS[name_or_tree] if isinstance(name_or_tree, str) else name_or_tree
    return TypeAdapter(EmbeddingConfig).validate_python(tree)


def build(
    name_or_tree: str | dict[str, Any],
    fields: tuple[FieldSpec, ...] = FIELDS,
    dims: dict[str, int] | None = None,
    seed: int = 0,
    **train: Any,
) -> tuple[IdMap, dict[str, EmbeddingLayer]]:
    torch.manual_seed(seed)
    settings = TrainConfig(**train)
    return build_embeddings(config(name_or_tree), fields, dims or DIMS, train=settings)


def encoded(rows: int, seed: int = 0) -> Batch:
    """An encoded batch for `FIELDS`; about a fifth of the numerics are missing."""
    made = torch.Generator().manual_seed(seed)

    def ids(n: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, n, (rows, *shape), generator=made)

    floats = torch.randn(rows, 4, generator=made)
    floats[torch.rand(rows, generator=made) < 0.2, 0] = torch.nan
    floats[torch.rand(rows, generator=made) < 0.2, 1:] = torch.nan
    lengths = torch.stack([ids(5), ids(4)], 1)
    return Batch(
        torch.stack([ids(10), ids(300), ids(2000)], 1), floats, [ids(2000, 4), ids(50, 3)], lengths
    )
