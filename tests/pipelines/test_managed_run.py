"""Runs with managed tables: the bundle, its modules, and a run that starts from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import train
from pipelines.prepare import prepare
from recsys.bundle.rebuild import rebuild
from recsys.bundle.warm_start import warm_start
from recsys.config import RunConfig, parse_click_config
from recsys.data.synthetic import PlantedLog, write_log
from recsys.embeddings.managed_store import ManagedStore
from recsys.training.progress import SilentReporter
from recsys.types import InputError
from serving.bundle import open_bundle
from serving.encode import encode
from serving.scorer import Scorer

OPEN = {"type": "categorical", "encoding": "hash"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> PlantedLog:
    return write_log(tmp_path_factory.mktemp("log"), rows=6000, eval_rows=800, seed=1)


def config(log: PlantedLog, rows: int = 60, **keys: Any) -> RunConfig:
    return parse_click_config(
        {
            "name": "managed",
            "seed": 3,
            "data": {"train": str(log.train), "valid": str(log.valid), "label": "label"},
            "features": {
                "price": {"type": "numeric", "transform": "log1p", "normalise": "standard"},
                "site": {"type": "categorical"},
                "ad": OPEN,
                "page": {"type": "categorical", "encoding": "hash", "buckets": 500},
                "item": OPEN,
                "history": {"type": "sequence", "shares": "item", "max_length": 5},
            },
            "embedding": {
                "method": "managed",
                "embedding_dim": 8,
                "rows": rows,
                "eviction_interval": 3,
            },
            "model": {"name": "deepfm", "hidden_units": [16]},
            "train": {"batch_size": 500, "max_epochs": 2, "learning_rate": 0.01},
            "tracking": {"uri": None},
            "export": {"verify_rows": 50},
            **keys,
        }
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, log: PlantedLog) -> str:
    return str(train.run(config(log), out=tmp_path_factory.mktemp("run"))["bundle"])


def test_the_bundle_scores_as_the_live_model(bundle: str, log: PlantedLog) -> None:
    """The export has proved itself without recsys; here against modules built from it, on rows with
    ids that own a row, ids that share one, and null."""
    rebuilt = rebuild(open_bundle(bundle))
    rows = pq.read_table(log.valid)
    raw = encode(rows, rebuilt.features.inputs)
    scores = Scorer(bundle).predict(rows)
    assert rebuilt.check(raw, scores) <= 1e-6
    assert np.std(scores) > 0.01
    names = [field.name for field in rebuilt.features.fields]
    (layer, *_) = [m for m in rebuilt.graph.modules() if type(m).__name__ == "EmbeddingLayer"]
    ads = raw.ids[:, names.index("ad")].unsqueeze(1)
    table = layer.tables[layer.slots(names.index("ad"))[0]]  # type: ignore[operator, index]
    places = table.rows_of(ads)
    assert 0.02 < (places == 59).float().mean() < 0.98


def test_a_run_starts_from_another(bundle: str, log: PlantedLog, tmp_path: Path) -> None:
    tree = config(log).train.model_dump() | {"warm_start": bundle}
    warm = config(log, train=tree)
    made = prepare(warm, root=".", cache=tmp_path, reporter=SilentReporter())
    warm_start(made.assembly.model, made.features, warm)
    assert any(isinstance(store, ManagedStore) for store in made.assembly.layers[0].tables)
    old = rebuild(open_bundle(bundle))
    raw = encode(pq.read_table(log.valid), old.features.inputs)
    live = made.assembly.model.eval()(made.assembly.id_map(made.assembly.encoder(raw)))
    torch.testing.assert_close(torch.sigmoid(live), old.graph(*raw), rtol=0, atol=1e-6)
    other = config(log, rows=61, train=tree)
    made = prepare(other, root=".", cache=tmp_path, reporter=SilentReporter())
    with pytest.raises(InputError, match=r"train\.warm_start"):
        warm_start(made.assembly.model, made.features, other)


def test_quantised_export_is_proved_too(log: PlantedLog, tmp_path: Path) -> None:
    quantised = config(log, export={"verify_rows": 50, "quantise": "int8"})
    result = train.run(quantised, out=tmp_path)
    whole = train.run(config(log), out=tmp_path)
    assert result["memory"]["stored_bytes"] < 0.6 * whole["memory"]["stored_bytes"]
    assert abs(result["metrics"]["valid"]["auc"] - whole["metrics"]["valid"]["auc"]) < 0.002
