"""The laws: what every model and every table method must obey, for whoever adds one.

    from recsys.testing import MODEL_LAWS, world

    @pytest.mark.parametrize("law", MODEL_LAWS, ids=lambda law: law.__name__)
    def test_my_model(law, tmp_path):
        law(world(tmp_path, model=MyModel.example()))

A law takes a `World`: a small log with every kind of field, fitted, and the modules of one run.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from recsys.build import Assembly, build
from recsys.bundle import ServingGraph
from recsys.config import RunConfig, parse_config
from recsys.features import Features, fit
from recsys.types import Batch, FrozenConfig
from serving.encode import encode
from serving.parquet import open_source

_FEATURES: dict[str, Any] = {
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
    config = parse_config(
        {
            "name": "world",
            "seed": seed,
            "data": {"train": "world.parquet", "label": "label"},
            "features": _FEATURES,
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


# -- laws of models -----------------------------------------------------------------------------


def check_any_batch_size(world: World) -> None:
    """0, 1 and 5 rows give finite logits of shape (B,)."""
    model = world.model.eval()
    for count in (0, 1, 5):
        logits = model(world.rows(0, count))
        assert logits.shape == (count,)
        assert torch.isfinite(logits).all()


def check_every_parameter_gets_a_gradient(world: World) -> None:
    """No dead weights: one backward pass reaches every parameter."""
    _shake(world.model)
    world.model.train()
    world.model(world.rows()).square().sum().backward()
    for name, parameter in world.model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        assert grad.abs().sum() > 0, f"{name} gets a zero gradient"


def check_a_row_scores_the_same_alone(world: World) -> None:
    """In evaluation a row's logit does not depend on the rows beside it."""
    model = _shake(world.model).eval()
    together = model(world.rows(0, 8))
    alone = torch.cat([model(world.rows(i, 1)) for i in range(8)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def check_same_seed_same_weights(world: World) -> None:
    """Building twice gives equal weights; another seed gives others."""
    first = build(world.config, world.features).model.state_dict()
    again = build(world.config, world.features).model.state_dict()
    other_config = world.config.model_copy(update={"seed": world.config.seed + 1})
    other = build(other_config, world.features).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def check_script_equals_eager(world: World) -> None:
    """The scripted graph, saved and loaded, gives the eager graph's scores at any batch size."""
    graph = _graph(world)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(graph), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    for count in (0, 1, 2, 7, 50):
        raw = world.raw(0, count)
        torch.testing.assert_close(scripted(*raw), graph(*raw), atol=1e-6, rtol=0)


def check_export_equals_eager(world: World) -> None:
    """`torch.export` with a dynamic batch gives the eager graph's scores."""
    graph = _graph(world)
    raw = world.raw(0, 20)
    rows, lengths = torch.export.Dim("rows", min=0), []
    for f in range(len(raw.lists)):
        lengths.append({0: rows, 1: torch.export.Dim(f"length{f}", min=0)})
    shapes = ({0: rows}, {0: rows}, lengths, {0: rows})
    program = torch.export.export(graph, tuple(raw), dynamic_shapes=shapes).module()
    for first, count in ((0, 0), (0, 1), (3, 2), (5, 7), (0, 50)):
        other = world.raw(first, count)
        torch.testing.assert_close(program(*other), graph(*other), atol=1e-6, rtol=0)


def check_weights_round_trip(world: World) -> None:
    """A state dict moved into a fresh build gives equal logits."""
    model = _shake(world.model).eval()
    fresh = build(world.config.model_copy(update={"seed": 99}), world.features).model.eval()
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(fresh(world.rows()), model(world.rows()))


# -- laws of table methods ----------------------------------------------------------------------


def check_shape(world: World) -> None:
    """(B, F, D) for 0, 1 and 5 rows, and (B, L, D) with its mask for lists."""
    for layer in world.assembly.layers:
        for count in (0, 1, 5):
            batch = world.rows(0, count)
            assert layer(batch).shape == (count, len(layer.fields), layer.dim)
            for f, field in enumerate(layer.fields):
                if field.is_list:
                    vectors, mask = layer.sequence(batch, f)
                    assert vectors.shape == (*mask.shape, layer.dim)
                    assert not vectors[~mask].any()


def check_empty_list_gives_zeros(world: World) -> None:
    """A row without tags gives exact zeros for that field, whatever its neighbours hold."""
    _shake(world.model)
    empty = np.array([len(tags) == 0 for tags in world.table["tags"].to_pylist()])
    for layer in world.assembly.layers:
        f = [field.name for field in layer.fields].index("tags")
        vectors = layer(world.rows())[:, f]
        assert not vectors[torch.from_numpy(empty)].any()
        assert vectors[torch.from_numpy(~empty)].abs().sum(1).min() > 0


def check_fields_do_not_leak(world: World) -> None:
    """Changing one column changes that field's vectors and no other's."""
    _shake(world.model)
    before = {id(layer): layer(world.rows()) for layer in world.assembly.layers}
    for name in _FEATURES:
        shuffled = world.table[name].take(pa.array(np.roll(np.arange(len(world.table)), 1)))
        table = world.table.set_column(world.table.schema.get_field_index(name), name, shuffled)
        changed = World(world.config, world.features, world.assembly, table)
        for layer in world.assembly.layers:
            moved = (layer(changed.rows()) - before[id(layer)]).abs().sum((0, 2)) > 1e-6
            assert [field.name for field, m in zip(layer.fields, moved, strict=True) if m] == [name]


def check_every_id_has_a_vector(world: World) -> None:
    """First, last, unseen and null ids all look up finite vectors; no index is out of range."""
    for layer in world.assembly.layers:
        assert torch.isfinite(layer(world.rows())).all()
        for f, field in enumerate(layer.fields):
            if field.num_ids is not None:
                assert layer.all_vectors(f).shape == (field.num_ids, layer.dim)


def check_memory_equals_tensors(world: World) -> None:
    """`memory()` counts what is there: parameters exactly, bytes within 5 % of the saved file."""
    total = world.assembly.memory()
    parameters = [p for layer in world.assembly.layers for p in layer.parameters()]
    assert total.trainable_params <= sum(p.numel() for p in parameters)
    assert total.trainable_params >= 0.95 * sum(p.numel() for p in parameters)
    tensors: dict[int, Tensor] = {id(p): p for p in parameters}
    for part in (*world.assembly.layers, world.assembly.id_map):
        tensors.update({id(b): b for b in part.buffers()})
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    assert abs(total.stored_bytes - held) <= 0.05 * held
    assert total.training_bytes >= total.stored_bytes
    assert total.lookups_per_row >= 2


def check_finalise_keeps_outputs(world: World) -> None:
    """The serving form gives equal vectors and holds no more bytes."""
    _shake(world.model)
    for layer in world.assembly.layers:
        final = layer.finalise()
        assert torch.equal(final(world.rows()), layer(world.rows()))
        assert final.memory().stored_bytes <= layer.memory().stored_bytes


Law = Callable[[World], None]

MODEL_LAWS: list[Law] = [
    check_any_batch_size,
    check_every_parameter_gets_a_gradient,
    check_a_row_scores_the_same_alone,
    check_same_seed_same_weights,
    check_script_equals_eager,
    check_export_equals_eager,
    check_weights_round_trip,
]

TABLE_LAWS: list[Law] = [
    check_shape,
    check_empty_list_gives_zeros,
    check_fields_do_not_leak,
    check_every_id_has_a_vector,
    check_memory_equals_tensors,
    check_finalise_keeps_outputs,
    check_script_equals_eager,
    check_export_equals_eager,
]


def _shake(model: nn.Module) -> nn.Module:
    """Weights far from their (often tiny) initial values, so that differences show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _graph(world: World) -> ServingGraph:
    model = _shake(world.model).eval()
    a = world.assembly
    return ServingGraph(encoder=a.encoder, id_map=a.id_map, model=model).eval()
