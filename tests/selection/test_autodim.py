"""AutoDim: what moves on which rows, planted ranks, one-hot in the end, the serving form."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model
from taught import TRAIN, Reader, lessons
from torch import Tensor

from recsys.embeddings import EmbeddingLayer, IdMap, build_embeddings, full, unified
from recsys.selection.autodim import AutoDim, AutoDimConfig
from recsys.selection.width_search import FieldProjections
from recsys.testing.rows import MemoryRows
from recsys.training.phase import Loop
from recsys.training.trainer import Trainer
from recsys.types import Batch, FieldSpec, InputError, Target

VALUES, DIM = 40, 8


def teacher() -> Tensor:
    """The vectors of the first field lie on a line, those of the second span all of R^8."""
    made = torch.Generator().manual_seed(1)
    line = torch.randn(VALUES, 1, generator=made) @ torch.randn(1, DIM, generator=made)
    return torch.cat([line, 1.2 * torch.randn(VALUES, DIM, generator=made)])


def taught(count: int = 6000, seed: int = 1) -> MemoryRows:
    return lessons(teacher(), fields=2, count=count, seed=seed)


def wrapped(out: Path | None = None, **keys: Any) -> tuple[Reader, AutoDim, Trainer]:
    train = TRAIN.model_copy(update={"max_epochs": 3})
    model = Reader(fields=2, values=VALUES, dim=DIM)
    settings = {"search_epochs": 6, "size_penalty": 0.1, **keys}
    selection = AutoDim(AutoDimConfig(method="autodim", **settings), [model.layer], train)
    return model, selection, Trainer(model=model, config=train, seed=3, out=out)


def test_candidates_stand_beside_the_untouched_table() -> None:
    plain = Reader(fields=2, values=VALUES, dim=DIM)
    model, selection, _ = wrapped()
    (part,) = selection.parts
    assert part.widths == [8, 2, 4]
    table = model.layer.float_tables[0].weight.detach()
    assert table.shape == (2 * VALUES, 8 + 2 + 4)  # about twice the full table
    before = plain.layer.float_tables[0].weight.detach()
    assert torch.equal(table[:, :8], before)
    for start, width in ((8, 2), (10, 4)):  # the rows of the full table, in another order
        mine = table[:, start : start + width]
        assert torch.equal(mine.sort(0).values, before[:, :width].sort(0).values)
        assert not torch.equal(mine, before[:, :width])
    assert selection.training_bytes() > 0
    assert model.layer.memory().training_bytes > 1.7 * plain.layer.memory().training_bytes


@pytest.mark.parametrize("paper", [False, True])
def test_search_by_hand(paper: bool) -> None:
    """Sum over candidates of p_c times the projection, as published normalised, for each field."""
    model, selection, _ = wrapped(paper=paper)
    (part,) = selection.parts
    part.enter(searching=True)
    with torch.no_grad():
        part.logits.copy_(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, -1.0]]))
        part.temperature.fill_(0.5)
    batch, _ = next(taught(50).batches(50))
    model.train()
    torch.manual_seed(7)
    found = model.layer(batch)
    torch.manual_seed(7)
    noise = -torch.log(-torch.log(torch.rand(2, 3)))
    scores = (part.logits.detach() - part.logits.detach().logsumexp(1, True) + noise) / 0.5
    table = model.layer.float_tables[0].weight.detach()
    for f in range(2):
        expected = torch.zeros(50, DIM)
        for c, columns in enumerate((slice(0, 8), slice(8, 10), slice(10, 14))):
            wide = table[batch.ids[:, f], columns] @ part.candidate(c)[f]
            if paper:
                wide = (wide - wide.mean(0)) / (wide.var(0, unbiased=False) + 1e-5).sqrt()
            expected += scores[f].softmax(0)[c] * wide
        torch.testing.assert_close(found[:, f], expected, atol=1e-5, rtol=1e-4)


def test_l2_is_that_of_all_candidates_vectors() -> None:
    model, selection, _ = wrapped()
    (part,) = selection.parts
    tables = [model.layer.float_tables[0].weight.detach()]
    assert part.half_square(tables).item() == pytest.approx(
        tables[0][:, :DIM].square().sum().item() / 2
    )
    part.enter(searching=True)
    vectors = [
        tables[0][f * VALUES : (f + 1) * VALUES, columns] @ part.candidate(c)[f]
        for c, columns in enumerate((slice(0, 8), slice(8, 10), slice(10, 14)))
        for f in range(2)
    ]
    expected = sum(v.square().sum().item() for v in vectors) / 2
    assert part.half_square(tables).item() == pytest.approx(expected, rel=1e-5)
    lengths = [v.square().mean().sqrt().item() for v in vectors]  # all start about equally long
    assert max(lengths) < 2 * min(lengths)
    _, published, _ = wrapped(paper=True)
    published.parts[0].enter(searching=True)
    assert published.parts[0].half_square(tables).item() == 0


def test_all_widths_full_can_be_packed_and_saved(tmp_path: Path) -> None:
    model, selection, trainer = wrapped(search_epochs=1)
    trainer.fit(taught(500), None, selection.phases()[:1])
    selection.close([torch.zeros(2, dtype=torch.int64)])  # candidate 0 is the full width
    selection.harden()
    model.eval()
    batch, _ = next(taught(50).batches(50))
    live = model.layer(batch)
    selection.pack(model, IdMap(row_map=model.layer.row_map, fields=model.layer.fields))
    torch.testing.assert_close(model.layer(batch), live, atol=1e-6, rtol=1e-5)
    save_model(model, str(tmp_path / "model.safetensors"))  # refuses views of larger tensors


def test_architecture_weights_move_on_search_rows_alone() -> None:
    _, selection, trainer = wrapped(search_epochs=2)
    search, _ = selection.phases()
    rows = taught(1000)
    kept, held = rows.parted(search.share, seed=3)  # type: ignore[attr-defined]
    assert len(held) > 100
    (part,) = selection.parts
    whole, moved = trainer.descend, []

    def descend(batch: Batch, target: Target, *, only: Collection[str] | None = None) -> float:
        logits, table = part.logits.detach().clone(), part.mixing.detach().clone()
        loss = whole(batch, target, only=only)
        if only == ("architecture",):
            assert all(bool((held.floats == row).all(1).any()) for row in batch.floats)
            assert torch.equal(part.mixing, table)
            moved.append(not torch.equal(part.logits, logits))
        else:
            assert all(bool((kept.floats == row).all(1).any()) for row in batch.floats)
            assert torch.equal(part.logits, logits)
            assert not torch.equal(part.mixing, table)
        return loss

    trainer.descend = descend  # type: ignore[method-assign]
    trainer.fit(rows, None, [search])
    assert len(moved) == 2 * -(-len(kept) // 250)
    assert all(moved)


def test_the_temperature_falls_over_the_steps_there_are() -> None:
    _, selection, trainer = wrapped(search_epochs=2)
    search, _ = selection.phases()
    trainer.train_rows = rows = taught(1000)
    steps = 2 * -(-len(rows.parted(0.2, seed=3)[0]) // 250)
    assert search.temperature(trainer, 0) == 1.0  # type: ignore[attr-defined]
    assert search.temperature(trainer, steps - 1) == pytest.approx(0.01)  # type: ignore[attr-defined]
    _, selection, _ = wrapped(paper=True)
    search, _ = selection.phases()
    published = 1 - 5e-5 * 1000 * 250 / 2000
    assert search.temperature(trainer, 1000) == pytest.approx(published)  # type: ignore[attr-defined]
    assert search.temperature(trainer, 10**6) == 0.01  # type: ignore[attr-defined]


def test_the_rank_of_each_field_shows_in_its_width() -> None:
    model, selection, trainer = wrapped()
    trainer.fit(taught(12000), taught(2000, 2), selection.phases())
    (found,) = selection.widths()
    assert found == {"f0": 2, "f1": 8}
    # one candidate each, in the first columns; all else is exactly zero, and trained nothing
    (part,) = selection.parts
    assert not part.logits.requires_grad
    table = model.layer.float_tables[0].weight.detach()
    projection = part.projection.detach().view(2, DIM, DIM)
    for f, width in enumerate(found.values()):
        rows = table[f * VALUES : (f + 1) * VALUES]
        assert rows[:, :width].all()
        assert not rows[:, width:].any()
        assert projection[f, :width].all()
        assert not projection[f, width:].any()
    # what a layer gives is rows times projection, live and packed
    model.eval()
    batch, _ = next(taught(50).batches(50))
    live = model.layer(batch)
    for f in range(2):
        expected = table[batch.ids[:, f], :DIM] @ projection[f]
        torch.testing.assert_close(live[:, f], expected, atol=1e-6, rtol=1e-5)
    report = selection.report()
    sizes = list(found.values())
    assert report["parameters"] == 2 * VALUES * DIM
    assert report["parameters_kept"] == sum((VALUES + DIM) * width for width in sizes)
    selection.pack(model, IdMap(row_map=model.layer.row_map, fields=model.layer.fields))
    assert isinstance(model.layer.combine, FieldProjections)
    assert model.layer.combine.weight.shape == (sum(sizes) + 1, DIM)
    assert torch.equal(model.layer(batch), live)


def test_the_retrain_starts_from_the_first_weights_of_what_was_chosen() -> None:
    model, selection, trainer = wrapped(search_epochs=1)
    first = {key: value.clone() for key, value in model.state_dict().items()}
    search, retrain = selection.phases()
    trainer.fit(taught(1000), None, [search])
    (choice,) = selection.chosen()
    retrain.start(trainer)
    table, before = model.layer.float_tables[0].weight, first["layer.stores.0.weight"]
    columns = ((0, 8), (8, 2), (10, 4))
    for f, c in enumerate(choice.tolist()):
        start, width = columns[c]
        rows = slice(f * VALUES, (f + 1) * VALUES)
        assert torch.equal(table[rows, :width], before[rows, start : start + width])


def test_l2_of_vectors_is_that_of_rows_times_projections() -> None:
    model, selection, trainer = wrapped(search_epochs=1)
    trainer.fit(taught(1000), None, selection.phases())
    (part,) = selection.parts
    vectors = torch.cat([model.layer.all_vectors(f) for f in range(2)])
    rows = model.layer.all_vectors(0)
    assert rows.shape == (VALUES, DIM)
    found = part.half_square([model.layer.float_tables[0].weight])
    torch.testing.assert_close(found, vectors.square().sum() / 2)


def test_a_resume_is_exact_in_both_phases(tmp_path: Path) -> None:
    class Stop(RuntimeError):
        pass

    rows = taught(1000)
    whole, selection, trainer = wrapped(search_epochs=2)
    trainer.fit(rows, rows, selection.phases())
    for place in (0, 1):
        out = tmp_path / str(place)
        _, selection, trainer = wrapped(out, search_epochs=2)
        phases = selection.phases()

        def stop(loop: Loop, epoch: int) -> None:
            if epoch == 1:
                raise Stop

        phases[place].start_epoch = stop  # type: ignore[method-assign]
        with pytest.raises(Stop):
            trainer.fit(rows, rows, phases)
        resumed, selection, trainer = wrapped(out, search_epochs=2)
        with torch.no_grad():
            for parameter in resumed.parameters():
                parameter.add_(1.0)
        trainer.fit(rows, rows, selection.phases())
        for key, value in whole.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[key]), key


def layer(method: str) -> EmbeddingLayer:
    specs = (FieldSpec("a", "categorical", num_ids=9), FieldSpec("b", "categorical", num_ids=9))
    config: Any = full.FullConfig(method="full", embedding_dim=2)
    if method == "unified":
        config = unified.UnifiedConfig(method="unified", embedding_dim=8, lookups=2, rows=10)
    return build_embeddings(config, specs, {"v": config.embedding_dim}, train=TRAIN)[1]["v"]


@pytest.mark.parametrize(
    ("method", "words"), [("unified", "one row of a width"), ("full", "no layer has tables wider")]
)
def test_refused(method: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        AutoDim(AutoDimConfig(method="autodim"), [layer(method)], TRAIN)
