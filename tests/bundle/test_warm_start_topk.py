"""A model that recommends starts from an older bundle: item vectors and biases by raw item."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.build_sequence import build_sequence
from recsys.bundle.topk import export_top_k
from recsys.bundle.warm_start import warm_start
from recsys.config import SequenceRunConfig, parse_config
from recsys.data.item_space import fit_sequences, raw_items, train_items
from recsys.testing import world
from recsys.testing.sequences import SequenceWorld, sequence_world
from recsys.types import InputError
from serving.parquet import open_source

MODEL = {"name": "bert4rec", "layers": 1, "heads": 2, "hidden_units": 16}


@dataclass(frozen=True)
class Old:
    """A bundle, and what it was made of."""

    world: SequenceWorld
    items: pa.Array
    bundle: Path

    def config(self, **changes: Any) -> SequenceRunConfig:
        """The config of a run that starts from it."""
        tree = self.world.config.model_dump(mode="json")
        train = {**tree["train"], "warm_start": str(self.bundle)}
        config = parse_config({**tree, "train": train, **changes})
        assert isinstance(config, SequenceRunConfig)
        return config


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Old:
    folder = tmp_path_factory.mktemp("top_k")
    made = sequence_world(folder, model=MODEL)
    made.shaken()
    parts = made.assembly.finalise()
    export_top_k(
        parts.model,
        parts.encoder,
        made.features.inputs,
        folder / "bundle",
        items=made.items,
        k=3,
        filter_seen=True,
        manifest={"config": made.config.model_dump(mode="json")},
        features=made.features,
        rows=made.table.slice(0, 3),
    )
    return Old(made, made.items, folder / "bundle")


def test_items_keep_their_vectors_and_biases(old: Old, tmp_path: Path) -> None:
    some = pq.read_table(old.world.files.train.files[0]).slice(0, 25)
    pq.write_table(some, tmp_path / "some.parquet")
    config = old.config()
    features = fit_sequences(config.features, open_source(str(tmp_path / "some.parquet")))
    model = build_sequence(config, features).model
    cold = model.item_vectors().detach().clone()
    said = warm_start(model, features, config)
    theirs = old.world.model
    there = {raw: number for number, raw in enumerate(old.items.to_pylist()) if raw is not None}
    here = raw_items(train_items(old.world.files.catalogue), features).to_pylist()
    assert [raw for raw in here if raw] != [raw for raw in old.items.to_pylist() if raw in here]
    vectors, wanted = model.item_vectors(), theirs.item_vectors()
    for number, raw in enumerate(here):
        if raw is not None:
            assert torch.equal(vectors[number], wanted[there[raw]])
            assert model.item_bias()[number] == theirs.item_bias()[there[raw]]
            assert not torch.equal(vectors[number], cold[number])
    assert said.known == {"history": (len(here), len(here))}, "null and unseen among them"
    before = theirs.state_dict()
    for name, tensor in model.state_dict().items():
        if ".stores." not in name and name != "bias":
            assert torch.equal(tensor, before[name]), name


def test_a_longer_window_is_refused(old: Old) -> None:
    config = old.config(features={"history": {"type": "sequence", "max_length": 9}})
    features = fit_sequences(config.features, old.world.files.train)
    with pytest.raises(InputError, match="max_length 6 there and 9 here"):
        warm_start(build_sequence(config, features).model, features, config)


def test_a_model_of_clicks_cannot_start_from_one_that_recommends(old: Old, tmp_path: Path) -> None:
    clicks = world(tmp_path, model={"name": "lr"})
    tree = {**clicks.config.model_dump(mode="json"), "train": {"warm_start": str(old.bundle)}}
    with pytest.raises(InputError, match=r"model\.name is bert4rec there and lr here"):
        warm_start(clicks.model, clicks.features, parse_config(tree))
