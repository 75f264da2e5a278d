"""A small world to try laws in: every kind of field, fitted, and the modules of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from recsys.build import Assembly, build
from recsys.bundle.graph import ServingGraph
from recsys.config import RunConfig, parse_click_config
from recsys.embeddings.integer_store import IntegerStore
from recsys.embeddings.store import FloatStore
from recsys.features import Features, fit
from recsys.types import Batch, FrozenConfig
from serving.encode import encode
from serving.parquet import open_source

FEATURES: dict[str, Any] = {
    "site": {"type": "categorical"},
    "item": {"type": "categorical"},
    "price": {"type": "numeric", "normalise": "standard"},
    "tags": {"type": "bag", "pooling": "sum"},
    "history": {"type": "sequence", "shares": "item", "max_length": 4},
}


@dataclass(frozen=True)
class World:
    """A fitted log and the modules of one run over it. ``table`` holds raw rows with nulls, empty
    lists and ids that training has not seen."""

    config: RunConfig
    features: Features
    assembly: Assembly
    table: pa.Table

    @property
    def model(self) -> nn.Module:
        """The model under test."""
        return self.assembly.model

    def raw(self, first: int = 0, count: int | None = None) -> Batch:
        """Rows of ``table`` as the exported graph takes them."""
        return encode(self.table.slice(first, count), self.features.inputs)

    def rows(self, first: int = 0, count: int | None = None) -> Batch:
        """Rows of ``table`` as the model takes them."""
        return self.assembly.id_map(self.assembly.encoder(self.raw(first, count)))


def world(
    folder: Path,
    *,
    model: FrozenConfig | dict[str, Any] | None = None,
    embedding: FrozenConfig | dict[str, Any] | None = None,
    seed: int = 0,
) -> World:
    """Builds a `World` in ``folder`` around a model config, a table config, or both."""
    seen, table = _log(200, seed=1), _log(50, seed=2)
    pq.write_table(seen, folder / "world.parquet")
    config = parse_click_config(
        {
            "name": "world",
            "seed": seed,
            "data": {"train": "world.parquet", "label": "label"},
            "features": FEATURES,
            "embedding": _plain(embedding or {"method": "full", "embedding_dim": 8}),
            "model": _plain(model or {"name": "lr"}),
            "tracking": {"uri": None},
        }
    )
    features = fit(config.features, open_source("world.parquet", root=str(folder)))
    return World(config, features, build(config, features), table)


def _plain(config: FrozenConfig | dict[str, Any]) -> dict[str, Any]:
    return config.model_dump(mode="json") if isinstance(config, FrozenConfig) else config


def _log(count: int, *, seed: int) -> pa.Table:
    """The second log draws ids from a wider range than the first: some are unseen in training."""
    rng = np.random.default_rng(seed)
    ids = 30 * seed
    price = [None if rng.random() < 0.2 else float(rng.normal(10, 3)) for _ in range(count)]
    return pa.table(
        {
            "label": pa.array(rng.integers(0, 2, count), pa.int8()),
            "site": pa.array(
                [None if i % 9 == 0 else f"s{rng.integers(ids)}" for i in range(count)]
            ),
            "item": pa.array(rng.integers(0, ids, count), pa.int64()),
            "price": pa.array(price, pa.float64()),
            "tags": [[f"t{t}" for t in rng.integers(0, 9, i % 4)] for i in range(count)],
            "history": [rng.integers(0, ids, rng.integers(0, 7)).tolist() for _ in range(count)],
        }
    ).cast(
        pa.schema(
            {
                "label": pa.int8(),
                "site": pa.string(),
                "item": pa.int64(),
                "price": pa.float64(),
                "tags": pa.list_(pa.string()),
                "history": pa.list_(pa.int64()),
            }
        )
    )


def shake(model: nn.Module) -> nn.Module:
    """Weights far from their (often tiny) initial values, so that differences show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for store in model.modules():
            if isinstance(store, FloatStore) and store.padding >= 0:
                store.weight[store.padding] = 0.0  # as no training moves it
            if isinstance(store, IntegerStore):
                store.write(
                    torch.arange(store.codes.size(0)),
                    0.1 * torch.randn(store.codes.shape, generator=generator),
                )
    return model


def graph(world: World) -> ServingGraph:
    model = shake(world.model).eval()
    a = world.assembly
    return ServingGraph(encoder=a.encoder, id_map=a.id_map, model=model).eval()
