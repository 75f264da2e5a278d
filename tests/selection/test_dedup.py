"""Deduplication: planted duplicates are found and nothing else, groups by hand, packed tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from pydantic import ValidationError
from test_resume import Stopping

from recsys.embeddings import IdMap, build_embeddings
from recsys.models import MODELS
from recsys.selection.block_groups import Lsh, group_blocks
from recsys.selection.dedup import Dedup, DedupConfig
from recsys.training.trainer import Interrupted, Trainer
from recsys.types import FieldSpec, InputError

N = 3000


def copies(noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """3,000 blocks of 16 x 8 standard normal entries, 1,000 of which are copies of some of the
    others plus uniform noise; and which one each of them copies."""
    made = torch.Generator().manual_seed(seed)
    blocks = torch.randn(N, 128, generator=made)
    source = torch.arange(N)
    source[2000:] = torch.randint(0, 2000, (1000,), generator=made)
    jitter = noise * (2 * torch.rand(1000, 128, generator=made) - 1)
    blocks[2000:] = blocks[source[2000:]] + jitter
    return blocks, source


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_planted_copies_are_found_and_nothing_else(noise: float) -> None:
    blocks, source = copies(noise)
    target = group_blocks(blocks, tolerance=0.1, similarity=0.7)
    found = (target != torch.arange(N))[2000:]
    assert found.float().mean() >= 0.95
    assert not (target != torch.arange(N))[:2000].any()
    joined = 2000 + found.nonzero().flatten()
    assert torch.equal(source[target[joined]], source[joined])  # of the right one, or its copy
    assert torch.equal(target[target], target)


@pytest.mark.parametrize(("wrong", "joined"), [(0, True), (2, True), (3, True), (4, False)])
def test_seven_of_ten_entries_must_agree(wrong: int, joined: bool) -> None:
    blocks = torch.zeros(2, 10)
    blocks[1, :wrong] = 0.3
    lsh = Lsh(bands=64, hashes=1)
    target = group_blocks(blocks, tolerance=0.25, similarity=0.7, lsh=lsh)
    assert target.tolist() == [0, 0 if joined else 1]
    assert group_blocks(blocks, tolerance=0.35, similarity=1.0, lsh=lsh).tolist() == [0, 0]


def test_no_group_of_groups() -> None:
    """A chain of near neighbours: every member is close to the first of its group."""
    chain = torch.arange(12.0).unsqueeze(1).expand(12, 8) * 0.6
    target = group_blocks(chain, tolerance=1.0, similarity=1.0, lsh=Lsh(bands=64, hashes=1))
    assert (chain - chain[target]).abs().max() <= 1.0
    assert len(target.unique()) < 12


def made(
    rows: int = 23, *, size: int = 4, fields: tuple[FieldSpec, ...] | None = None, **config: Any
) -> tuple[Dedup, IdMap, Any]:
    """Two layers over one table of ``rows`` ids, blocks of ``size`` rows."""
    fields = fields or (FieldSpec("a", "categorical", num_ids=rows),)
    table = planted.full.FullConfig(method="full", embedding_dim=2, init_std=1.0)
    id_map, layers = build_embeddings(table, fields, {"wide": 2, "one": 1}, train=planted.TRAIN)
    model = torch.nn.ModuleDict(layers)
    settings = DedupConfig(method="dedup", block_rows=size, **config)
    return Dedup(settings, list(layers.values()), planted.TRAIN), id_map, model


def twins(selection: Dedup) -> None:
    """Makes block 3 block 1 plus .02 in both layers; 23 rows: blocks 0 to 4, then 3 rows more."""
    with torch.no_grad():
        for layer in selection.layers:
            weight = layer.float_tables[0].weight
            weight[12:16] = weight[4:8] + 0.02


@pytest.mark.parametrize("representative", ["mean", "first"])
def test_sharing_by_hand(representative: str) -> None:
    torch.manual_seed(0)
    selection, id_map, model = made(representative=representative)
    twins(selection)
    before = [layer.float_tables[0].weight.detach().clone() for layer in selection.layers]
    selection.share()
    assert selection.places[0].place.tolist() == [0, 1, 2, 1, 4, 5]
    ids = torch.arange(23).unsqueeze(1)
    seen = [layer.all_vectors(0).detach() for layer in selection.layers]
    for was, now in zip(before, seen, strict=True):
        expected = was.clone()
        expected[12:16] = expected[4:8] = was[4:8] + (0.01 if representative == "mean" else 0)
        torch.testing.assert_close(now, expected, rtol=0, atol=1e-6)
    assert selection.report() == {
        "method": "dedup",
        "rows": 23,
        "rows_kept": 19,
        "blocks": 6,
        "blocks_kept": 5,
        "blocks_kept_by_table": [5],
    }
    packed = selection.pack(model, id_map)
    assert packed.row_map.remap.dtype == torch.uint8
    assert packed.row_map.remap.tolist() == [0, 1, 2, 1, 3, 4]
    assert packed.row_map(ids[12:16], 0).flatten().tolist() == [4, 5, 6, 7]
    assert packed.row_map(ids[20:], 0).flatten().tolist() == [16, 17, 18]
    for name, was in zip(("wide", "one"), seen, strict=True):
        assert model[name].tables[0].weight.shape == (19, was.size(1))
        assert torch.equal(model[name].all_vectors(0), was)
    # 19 rows of 3 floats, 6 bytes of places, the map's 8-byte numbers
    stored = sum(layer.memory().stored_bytes for layer in model.values())
    assert 19 * 12 + 6 <= stored <= 19 * 12 + 6 + 128


def test_shared_rows_train_together() -> None:
    selection, _, _ = made()
    twins(selection)
    selection.share()
    layer = selection.layers[0]
    layer.all_vectors(0)[5:14:8].sum().backward()  # rows 1 of blocks 1 and 3
    grad = layer.float_tables[0].weight.grad
    assert grad is not None
    dense = grad.to_dense() if grad.is_sparse else grad
    assert dense[5].tolist() == [2.0, 2.0]
    assert dense.abs().sum() == 4


def test_keep_meets_its_share() -> None:
    for keep in (0.3, 0.5, 0.8):
        torch.manual_seed(1)
        selection, _, _ = made(250, size=5, keep=keep)
        selection.share()
        kept = selection.report()["blocks_kept"] / 50
        assert keep - 0.15 <= kept <= keep


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="tolerance or keep, not both"):
        DedupConfig(method="dedup", tolerance=0.1, keep=0.5)
    with pytest.raises(InputError, match="two whole blocks"):
        made(23, size=12)
    with pytest.raises(InputError, match=r"at least 0\.33 of them stay"):
        made(23, keep=0.2)
    with pytest.raises(InputError, match="two whole blocks"):
        made(fields=(FieldSpec("x", "numeric"),))


def run(out: Path | None = None, **config: Any) -> tuple[Trainer, Dedup]:
    """DeepFM over the planted log, where every second value says nothing."""
    torch.manual_seed(5)
    table = planted.full.FullConfig(method="full", embedding_dim=6, init_std=1e-2)
    kind = MODELS["deepfm"]
    settings = kind.Config(hidden_units=(8,), dropout=0.3, batch_norm=True)
    train = planted.TRAIN.model_copy(update={"batch_size": 250, "max_epochs": 3, "patience": 3})
    _, layers = build_embeddings(table, planted.fields(), kind.tables(settings, 6), train=train)
    model = kind(settings, planted.fields(), layers)
    made = DedupConfig(method="dedup", block_rows=2, **{"keep": 0.6, **config})
    selection = Dedup(made, list(layers.values()), train)
    return Trainer(model=model, config=train, seed=3, fingerprint="c", out=out), selection


def test_phases_share_once_and_learn_on() -> None:
    trainer, selection = run()
    result = trainer.fit(planted.log(2000, 1), planted.log(1000, 2), selection.phases())
    assert list(result.phases) == ["train", "fine_tune"]
    report = selection.report()
    assert 0.4 * report["blocks"] < report["blocks_kept"] <= 0.6 * report["blocks"]
    assert trainer.predict(planted.log(2000, 3)).metrics()["auc"] > 0.6
    for layer in selection.layers:
        weight = layer.float_tables[0].weight
        gone = (~selection.places[0].kept()).repeat_interleave(2)
        assert not weight[gone].any()


@pytest.mark.parametrize("stop_at", [3, 12, 14])
def test_resume_is_exact(stop_at: int, tmp_path: Path) -> None:
    """Stopped in training, at its end and in fine-tuning: 4 steps an epoch, 3 epochs a phase."""
    rows, valid = planted.log(1000, 1), planted.log(1000, 2)
    whole, expected = run()
    whole.fit(rows, valid, expected.phases())
    stopped, selection = run(tmp_path)
    with pytest.raises(Interrupted, match=f"step {stop_at}"):
        stopped.fit(
            Stopping(ids=rows.ids, label=rows.label, stop_at=stop_at), valid, selection.phases()
        )
    resumed, found = run(tmp_path)
    resumed.fit(rows, valid, found.phases())
    assert torch.equal(found.places[0].place, expected.places[0].place)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
