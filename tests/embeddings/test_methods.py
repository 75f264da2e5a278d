"""Laws of every table method, at every way of sizing it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from embedding_cases import CONFIGS, FIELDS, build, config, encoded, same
from pydantic import TypeAdapter
from safetensors.torch import save_file

from recsys.embeddings import EMBEDDINGS, EmbeddingConfig, build_embeddings
from recsys.embeddings.budget import BudgetTooSmall, budget_bytes
from recsys.settings import TrainConfig
from recsys.types import Batch, FieldSpec, InputError

every_config = pytest.mark.parametrize("name", CONFIGS)


def test_every_method_is_tried() -> None:
    assert {tree["method"] for tree in CONFIGS.values()} == set(EMBEDDINGS)


@every_config
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_shapes_and_script_equality(name: str, rows: int) -> None:
    id_map, layers = build(name)
    saved = io.BytesIO()
    torch.jit.save(torch.jit.script(id_map), saved)
    saved.seek(0)
    batch, scripted = id_map(encoded(rows)), torch.jit.load(saved)(encoded(rows))
    assert torch.equal(batch.ids, scripted.ids)
    assert all(torch.equal(a, b) for a, b in zip(batch.lists, scripted.lists, strict=True))
    for layer in layers.values():
        out = layer(batch)
        assert out.shape == (rows, len(FIELDS), layer.dim)
        assert torch.isfinite(out).all()
        saved = io.BytesIO()
        torch.jit.save(torch.jit.script(layer), saved)
        saved.seek(0)
        same(torch.jit.load(saved)(scripted), out, name)


@every_config
def test_torch_export_equals_eager(name: str) -> None:
    id_map, layers = build(name)

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.id_map, self.layer = id_map, layers["main"].finalise()

        def forward(
            self,
            ids: torch.Tensor,
            floats: torch.Tensor,
            lists: list[torch.Tensor],
            lengths: torch.Tensor,
        ) -> torch.Tensor:
            return self.layer(self.id_map(Batch(ids, floats, lists, lengths)))

    batch, model = encoded(6), Whole().eval()
    rows = torch.export.Dim("rows")
    dynamic = ({0: rows}, {0: rows}, [{0: rows}, {0: rows}], {0: rows})
    program = torch.export.export(model, tuple(batch), dynamic_shapes=dynamic)
    other = encoded(11, seed=3)
    torch.testing.assert_close(program.module()(*other), model(*other), rtol=0, atol=1e-7)


@every_config
def test_rows_of_one_field_equal_the_batch(name: str) -> None:
    id_map, _ = build(name)
    batch = encoded(20)
    rows = id_map(batch)
    columns = [id_map.field_rows(c, batch.ids[:, c]) for c in range(3)]
    assert torch.equal(torch.cat(columns, 1), rows.ids)
    for f, ids in enumerate(batch.lists):
        assert torch.equal(id_map.list_rows(f, ids.flatten()), rows.lists[f].flatten(0, 1))


@every_config
@pytest.mark.parametrize("sparse", [True, False])
def test_changing_one_field_changes_only_it(name: str, sparse: bool) -> None:
    id_map, layers = build(name, embedding_gradient="sparse" if sparse else "dense")
    for layer in layers.values():
        before = layer(id_map(encoded(5)))
        for f in range(len(FIELDS)):
            batch = encoded(5)
            if f < 3:
                batch.ids[:, f] = (batch.ids[:, f] + 1) % (FIELDS[f].num_ids or 1)
            elif f < 5:
                batch.floats[:, f - 3 : f - 2 + 2 * (f - 3)] = 0.5 * f
            else:
                batch.lists[f - 5].add_(1).remainder_(50)
                batch.lengths[:, f - 5] = 2
            changed = (layer(id_map(batch)) != before).any(-1)
            assert changed[:, f].any()
            changed[:, f] = False
            assert not changed.any()


@every_config
def test_all_vectors_and_sequences_are_the_same_rows(name: str) -> None:
    id_map, layers = build(name)
    batch = encoded(9)
    batch.lengths[:] = torch.tensor([[2, 1]])
    for layer in layers.values():
        rows = id_map(batch)
        out = layer(rows)
        for c in range(3):
            table = layer.all_vectors(c)
            assert table.shape == (FIELDS[c].num_ids, layer.dim)
            torch.testing.assert_close(table[batch.ids[:, c]], out[:, c], rtol=0, atol=1e-6)
        vectors, mask = layer.sequence(rows, 5)
        assert mask.sum(1).tolist() == [2] * 9
        assert (vectors[:, 2:] == 0).all()
        expected = layer.all_vectors(2)[batch.lists[0][:, :2]]  # history shares item's rows
        torch.testing.assert_close(vectors[:, :2], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(out[:, 5], expected.mean(1), rtol=0, atol=1e-6)
        tag = layer.all_vectors(6)[batch.lists[1][:, 0]]
        torch.testing.assert_close(out[:, 6], tag, rtol=0, atol=1e-6)


@every_config
def test_memory_counts_the_tensors_and_the_file(name: str, tmp_path: Path) -> None:
    id_map, layers = build(name)
    tensors: dict[str, torch.Tensor] = {}
    trained = fixed = 0
    for key, layer in layers.items():
        tensors |= {f"{key}.{k}": v.clone() for k, v in layer.state_dict().items()}
        trained += sum(p.numel() for p in layer.parameters())
        trained += sum(t.numel() for s in layer.tables if s.fused for t in s.trained())
        fixed += sum(s.weight.size(1) for s in layer.tables if s.padding >= 0)
    report = layers["main"].memory() + layers["first_order"].memory()
    assert report.trainable_params == trained - fixed
    parts = [t for m in (id_map, *layers.values()) for t in (*m.parameters(), *m.buffers())]
    unique = {t.data_ptr(): t.numel() * t.element_size() for t in parts if t.numel()}
    assert report.stored_bytes == sum(unique.values())
    floats = sum(t.numel() * t.element_size() for t in tensors.values())
    save_file(tensors, tmp_path / "layer.safetensors")
    names = 200 * (len(tensors) + 1)  # the header of the file
    assert floats < (tmp_path / "layer.safetensors").stat().st_size < floats + names
    assert report.training_bytes > 2 * floats


def test_training_bytes_hold_the_gradient_of_every_position_of_a_list() -> None:
    history = FieldSpec("history", "sequence", num_ids=10_000, pooling="mean", max_length=50)
    train = TrainConfig(embedding_gradient="sparse", batch_size=100, optimizer="sgd")
    table = TypeAdapter(EmbeddingConfig).validate_python({"method": "full"})
    _, layers = build_embeddings(table, (history,), {"main": 16}, train=train)
    weights, index_and_row = 4 * 16 * 10_000, 8 + 4 * 16
    assert layers["main"].memory().training_bytes >= weights + 100 * 50 * index_and_row


def test_training_bytes_of_projections() -> None:
    """Adam: weights, gradients and two moments of both tables and both projections."""
    for name in ("low_rank", "mixed_dim"):
        layer = build(name)[1]["main"]
        trained = sum(p.numel() for p in layer.parameters())
        index = layer.memory().stored_bytes - 4 * trained
        assert layer.memory().training_bytes == 4 * 4 * trained + index


@pytest.mark.parametrize("name", [name for name, tree in CONFIGS.items() if "budget" in tree])
def test_a_budget_is_never_exceeded_and_well_used(name: str) -> None:
    _, layers = build(name)
    limit = budget_bytes(config(name).budget, FIELDS, {"main": 16, "first_order": 1})
    used = sum(layer.finalise().memory().stored_bytes for layer in layers.values())
    assert used <= limit
    if name.startswith(("hash-", "double_hash", "frequency", "managed", "unified", "robe")):
        assert used > limit - 2 * 4 * 17  # no room for two rows of all layers


@pytest.mark.parametrize("method", EMBEDDINGS)
def test_an_impossible_budget_names_one_that_works(method: str) -> None:
    with pytest.raises(BudgetTooSmall) as caught:
        build({"method": method, "budget": "1KB"})
    floor = caught.value.floor
    assert f"needs at least {floor};" in str(caught.value)
    _, layers = build({"method": method, "budget": floor})
    assert layers["main"](build({"method": method, "budget": floor})[0](encoded(2))).shape[0] == 2


@every_config
def test_finalise_keeps_outputs_and_bytes(name: str) -> None:
    id_map, layers = build(name, embedding_gradient="sparse")
    batch = id_map(encoded(8))
    more = 0
    for layer in layers.values():
        final = layer.finalise()
        assert torch.equal(final(batch), layer(batch))
        more += layer.memory().stored_bytes - final.memory().stored_bytes
        final(batch).sum().backward()
        assert all(not p.grad.is_sparse for p in final.parameters() if p.grad is not None)
        assert more >= 0
    # of these training holds more
    assert (more > 0) == name.startswith(("product_quant", "hashed_mlp", "managed"))


@every_config
def test_fingerprint_follows_the_map(name: str) -> None:
    first, second = build(name)[0], build(name, seed=1)[0]
    assert first.fingerprint == second.fingerprint
    renamed = (FieldSpec("colour", "categorical", num_ids=11), *FIELDS[1:])
    assert build(name.replace("-rows", ""), renamed)[0].fingerprint != first.fingerprint


@every_config
def test_rows_may_be_int32_and_every_tensor_gets_a_gradient(name: str) -> None:
    id_map, layers = build(name, embedding_gradient="dense")
    for layer in layers.values():
        batch = id_map(encoded(64))
        small = Batch(batch.ids.int(), batch.floats, [x.int() for x in batch.lists], batch.lengths)
        out = layer(small)
        assert torch.equal(out, layer(batch))
        out.square().sum().backward()
        for parameter_name, parameter in layer.named_parameters():
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.abs().sum() > 0, parameter_name
            assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("method", ["full", "mixed_dim", "hash"])
def test_open_ids_are_refused_with_the_remedy(method: str) -> None:
    open_field = (FieldSpec("url", "categorical"),)
    with pytest.raises(InputError, match=r"features\.url: .*embedding\.method unified"):
        build({"method": method}, open_field)


def test_unified_and_sized_hash_take_open_ids() -> None:
    field = (FieldSpec("url", "categorical"),)
    ids = torch.tensor([[-(2**63)], [2**63 - 1], [0], [-1]])
    batch = Batch(ids, torch.zeros(4, 0), [], torch.zeros(4, 0, dtype=torch.int64))
    for tree in ({"method": "unified", "rows": 50}, {"method": "hash", "rows": {"url": 50}}):
        id_map, layers = build(tree, field)
        rows = id_map(batch).ids
        assert ((rows >= 0) & (rows < 50)).all()
        assert layers["main"](id_map(batch)).shape == (4, 1, 16)


def test_sharing_a_field_without_rows_is_refused() -> None:
    fields = (FieldSpec("h", "sequence", num_ids=5, shares="gone", pooling="sum"),)
    with pytest.raises(InputError, match="'gone' owns no embedding rows"):
        build("full", fields)


def test_full_with_a_budget_narrows_only_the_vectors() -> None:
    _, layers = build({"method": "full", "budget": "80KB"})
    # 2360 rows and 6 numeric vectors: 9,464 bytes a column; one column is the first-order layer
    assert layers["first_order"].dim == 1
    assert layers["main"].dim == (80_000 - 64 * 5 - 9_464) // 9_464 == 7


def test_hash_sizes_by_hand() -> None:
    _, layers = build({"method": "hash", "compression": 0.1})
    # color 10 and tags 50 are exact; shop ceil(30), item ceil(200)
    assert layers["main"].tables[0].weight.shape == (10 + 30 + 200 + 50, 16)
    _, layers = build({"method": "hash", "rows": 40})
    assert layers["main"].tables[0].weight.shape == (10 + 40 + 40 + 50, 16)
