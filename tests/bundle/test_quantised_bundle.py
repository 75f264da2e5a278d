"""Tables quantised after training: error bounds, bytes, what the bundle scores and records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines import export, train
from recsys.bundle import export_verified
from recsys.bundle.rebuild import rebuild
from recsys.config import parse_config
from recsys.data.synthetic import write_log
from recsys.embeddings.post_training import (
    AffineRows,
    HalfRows,
    Kind,
    quantise_layers,
    quantised,
    row_bytes,
)
from recsys.embeddings.store import TorchStore
from recsys.settings import TrainConfig
from recsys.testing import world
from recsys.testing.world import shake
from recsys.types import InputError
from serving.bundle import open_bundle
from serving.encode import encode
from serving.scorer import Scorer

KINDS: list[Kind] = ["int8", "int4", "fp16"]


def table(weight: torch.Tensor, kind: Kind) -> AffineRows:
    store = quantised(TorchStore(weight=weight, sparse=False), kind)
    assert isinstance(store, AffineRows)
    return store


@given(
    seed=st.integers(0, 10**6),
    width=st.integers(5, 33),
    size=st.sampled_from([1e-9, 1e-4, 0.1, 3.0, 1000.0]),
    shift=st.sampled_from([0.0, 0.37, -20.0]),
    kind=st.sampled_from(["int8", "int4"]),
)
def test_every_weight_lies_within_half_a_step(
    seed: int, width: int, size: float, shift: float, kind: Kind
) -> None:
    weight = size * (torch.randn(20, width, generator=torch.Generator().manual_seed(seed)) + shift)
    weight[3] = weight[3, 0]  # a row of equal weights
    store = table(weight, kind)
    rows = torch.arange(20)
    scale = store.affine[:, :1].float()
    error = (store(rows).detach() - weight).abs()
    assert (error <= scale / 2 + 1e-6 * weight.abs()).all()
    ideal = (weight.amax(1) - weight.amin(1)) / (255 if kind == "int8" else 15)
    coarse = weight.abs().amax(1) * 2**-9 + 2**-22  # what fp16 may add to the range
    assert (scale.squeeze(1) <= ideal * 1.01 + coarse).all()


def test_int4_by_hand() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0, 15.0, 7.4, 7.6, 3.0]])
    store = table(weight, "int4")
    assert store.affine.tolist() == [[1.0, 0.0]]
    assert store.codes.tolist() == [[0 + 1 * 16, 2 + 15 * 16, 7 + 8 * 16, 3]]
    assert store(torch.zeros(2, 1).long()).tolist() == [[[0, 1, 2, 15, 7, 8, 3]]] * 2


@pytest.mark.parametrize(("kind", "row"), [("int8", 20), ("int4", 12), ("fp16", 32)])
def test_bytes_of_a_row_16_wide(kind: Kind, row: int) -> None:
    store = quantised(TorchStore(weight=torch.randn(50, 16), sparse=False), kind)
    assert store.memory(TrainConfig(), 0).stored_bytes == 50 * row == 50 * row_bytes(kind, 16)
    assert sum(b.numel() * b.element_size() for b in store.buffers()) == 50 * row


def test_narrow_tables_become_fp16_and_zero_rows_stay_zero() -> None:
    for kind in KINDS:
        narrow = quantised(TorchStore(weight=torch.randn(9, 1), sparse=False), kind)
        assert isinstance(narrow, HalfRows)
        weight = torch.randn(9, 16) + 1
        weight[-1] = 0
        store = quantised(TorchStore(weight=weight, sparse=False, zero_row=True), kind)
        assert not store(torch.tensor([8])).any()
        assert store.memory(TrainConfig(), 0).trainable_params == 8 * 16


def test_weights_beyond_fp16_are_refused() -> None:
    for kind in KINDS:
        with pytest.raises(InputError, match=r"export\.quantise"):
            quantised(TorchStore(weight=torch.full((2, 16), 1e6), sparse=False), kind)


CASES: list[tuple[dict[str, Any], Kind]] = [
    ({"method": "full", "embedding_dim": 9}, "int4"),
    ({"method": "unified", "embedding_dim": 16, "lookups": 2, "budget": 0.7}, "int8"),
    ({"method": "mixed_dim", "embedding_dim": 16, "alpha": 0.3}, "fp16"),
    ({"method": "int8", "embedding_dim": 8}, "int4"),
    ({"method": "alpt", "embedding_dim": 8}, "fp16"),
]


@pytest.mark.parametrize(("tree", "kind"), CASES, ids=[tree["method"] for tree, _ in CASES])
def test_bundle_scores_like_the_quantised_model(
    tree: dict[str, Any], kind: Kind, tmp_path: Path
) -> None:
    small = world(tmp_path, model={"name": "deepfm", "hidden_units": [8]}, embedding=tree)
    shake(small.model)
    assembly = small.assembly.finalise()
    before = assembly.memory()
    changed = quantise_layers(assembly.model, kind)
    after = assembly.memory()
    assert after.trainable_params == before.trainable_params
    integers = tree["method"] in ("int8", "alpt")
    assert changed != integers
    assert (after.stored_bytes == before.stored_bytes) == integers
    report = export_verified(
        assembly.model,
        assembly.encoder,
        assembly.id_map,
        small.features.inputs,
        tmp_path / "bundle",
        manifest={},
        features=small.features,
        rows=small.table,
    )
    assert report.max_abs_diff <= 1e-6


def test_a_run_records_what_quantisation_changed(tmp_path: Path) -> None:
    log = write_log(tmp_path, rows=6000, eval_rows=3000, seed=1)
    tree = {
        "name": "tiny",
        "data": {
            "train": str(log.train),
            "valid": str(log.valid),
            "test": str(log.test),
            "label": "label",
        },
        "features": {
            "price": {"type": "numeric", "transform": "log1p", "normalise": "standard"},
            "site": {"type": "categorical"},
            "item": {"type": "categorical"},
            "tags": {"type": "bag", "pooling": "mean"},
        },
        "embedding": {"method": "full", "embedding_dim": 16},
        "model": {"name": "deepfm", "hidden_units": [16]},
        "train": {"batch_size": 256, "max_epochs": 2, "learning_rate": 0.01},
        "tracking": {"uri": None},
    }
    floats = train.run(parse_config(tree), out=tmp_path / "floats", cache=tmp_path / "cache")
    for kind, bound in (("int8", 1e-4), ("int4", 1e-3)):
        config = parse_config({**tree, "export": {"quantise": kind}})
        result = train.run(config, out=tmp_path / kind, cache=tmp_path / "cache")
        bundle = Path(result["bundle"])
        manifest = json.loads((bundle / "manifest.json").read_text())
        said = manifest["quantised"]
        assert said == result["quantised"]
        assert said["kind"] == kind
        assert set(said["auc"]) == {"valid", "test"}
        for split in ("valid", "test"):
            auc = said["auc"][split]
            assert auc["before"] == result["metrics"][split]["auc"] > 0.6
            assert 0 < abs(auc["after"] - auc["before"]) < bound
        sizes = said["stored_bytes"]
        assert manifest["memory"]["stored_bytes"] == sizes["after"] < 0.45 * sizes["before"]
        # a bundle of floats that is quantised later is the same
        later = export.run(Path(floats["bundle"]), tmp_path / f"later-{kind}", quantise=kind)
        assert later["quantised"] == said
        assert open_bundle(later["bundle"]).manifest["memory"] == manifest["memory"]
        # the modules can be had again, and score as the bundle does
        opened = open_bundle(bundle)
        rebuilt = rebuild(opened)
        rows = pq.read_table(log.valid).slice(0, 200)
        scores = Scorer(bundle).predict(rows)
        assert rebuilt.check(encode(rows, rebuilt.features.inputs), scores) <= 1e-6
