"""Every item-sequence model obeys every law, over every table method, and is served as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_laws import TABLES

from recsys.bundle.topk import export_top_k
from recsys.models.sequence import SEQUENCE_MODELS
from recsys.testing.sequences import (
    SEQUENCE_LAWS,
    SequenceWorld,
    check_any_batch_size,
    check_finalise_keeps_outputs,
    check_script_equals_eager,
    sequence_world,
)
from recsys.training.ranking import target_ranks
from recsys.training.trainer import Trainer
from serving.topk import TopK

# A single table of 8 columns has no room for mixed_dim's budget of .8.
SINGLE = {**TABLES, "mixed_dim": {"method": "mixed_dim", "embedding_dim": 8, "alpha": 0.3}}


@pytest.mark.parametrize("law", SEQUENCE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_model(name: str, law: Callable[[SequenceWorld], None], tmp_path: Path) -> None:
    law(sequence_world(tmp_path, model=SEQUENCE_MODELS[name].example()))


@pytest.mark.parametrize("method", SINGLE)
@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_model_with_every_table_method(name: str, method: str, tmp_path: Path) -> None:
    example, table = SEQUENCE_MODELS[name].example(), SINGLE[method]
    small = sequence_world(tmp_path, model=example, embedding=table, train={"max_epochs": 1})
    check_any_batch_size(small)
    check_script_equals_eager(small)
    trained = sequence_world(tmp_path, model=example, embedding=table, train={"max_epochs": 1})
    before = trained.model.item_vectors().detach().clone()
    settings = trained.config.train
    result = Trainer(model=trained.model, config=settings, seed=0).fit(
        trained.data("train"), phases=trained.model.phases(settings)
    )
    assert result.steps > 0
    assert not torch.equal(trained.model.item_vectors(), before)
    check_finalise_keeps_outputs(trained)


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_bundle_recommends_like_the_live_model(name: str, tmp_path: Path) -> None:
    """Where the live ranking has the target among the best k, the bundle lists it at that place."""
    k = 8
    small = sequence_world(tmp_path, model=SEQUENCE_MODELS[name].example())
    small.shaken()
    assembly = small.assembly.finalise()
    test = small.data("test")
    ranks = target_ranks(
        assembly.model, test, batch_size=16, device=torch.device("cpu"), filter_seen=True
    )
    report = export_top_k(
        assembly.model,
        assembly.encoder,
        small.features.inputs,
        tmp_path / "bundle",
        items=small.items,
        k=k,
        filter_seen=True,
        manifest={},
        features=small.features,
        rows=small.table,
    )
    assert report.rows == 3 * small.table.num_rows + 1
    assert report.max_abs_diff <= 1e-5
    rows = next(iter(small.files.test.batches(["history", "target"])))
    lists = TopK(tmp_path / "bundle").recommend(rows.select(["history"])).items.to_pylist()
    assert (ranks <= k).any()
    for best, target, rank, seen in zip(
        lists, rows["target"].to_pylist(), ranks, rows["history"].to_pylist(), strict=True
    ):
        assert not set(best) & set(seen)
        if rank <= k:
            assert best[int(rank) - 1] == target
        else:
            assert target not in best
