"""Laws of table methods."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save
from torch import Tensor

from recsys.testing.world import FEATURES, World, shake


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
    shake(world.model)
    empty = np.array([len(tags) == 0 for tags in world.table["tags"].to_pylist()])
    for layer in world.assembly.layers:
        f = [field.name for field in layer.fields].index("tags")
        vectors = layer(world.rows())[:, f]
        assert not vectors[torch.from_numpy(empty)].any()
        assert vectors[torch.from_numpy(~empty)].abs().sum(1).min() > 0


def check_fields_do_not_leak(world: World) -> None:
    """Changing one column changes that field's vectors and no other's."""
    shake(world.model)
    before = {id(layer): layer(world.rows()) for layer in world.assembly.layers}
    for name in FEATURES:
        shuffled = world.table[name].take(pa.array(np.roll(np.arange(len(world.table)), 1)))
        table = world.table.set_column(world.table.schema.get_field_index(name), name, shuffled)
        changed = World(world.config, world.features, world.assembly, table)
        for layer in world.assembly.layers:
            # by the largest change of one number: a sum over all would add up rounding
            moved = (layer(changed.rows()) - before[id(layer)]).abs().amax((0, 2))
            names = [f.name for f, m in zip(layer.fields, moved.tolist(), strict=True) if m > 1e-6]
            assert names == [name], f"{name} moved {names}: {moved.tolist()}"


def check_every_id_has_a_vector(world: World) -> None:
    """First, last, unseen and null ids all look up finite vectors; no index is out of range."""
    for layer in world.assembly.layers:
        assert torch.isfinite(layer(world.rows())).all()
        for f, field in enumerate(layer.fields):
            if field.num_ids is not None:
                assert layer.all_vectors(f).shape == (field.num_ids, layer.dim)


def check_memory_equals_tensors(world: World) -> None:
    """`memory()` counts what is there: parameters exactly (but for rows that stay zero), and the
    bytes of the tensors and of a file of them within 5 %."""
    total = world.assembly.memory()
    parameters = [p for layer in world.assembly.layers for p in layer.parameters()]
    trained = {id(t): t.numel() for layer in world.assembly.layers for t in layer.trained()}
    assert total.trainable_params <= sum(trained.values())
    assert total.trainable_params >= 0.95 * sum(trained.values())
    tensors: dict[int, Tensor] = {id(p): p for p in parameters}
    for part in (*world.assembly.layers, world.assembly.id_map):
        tensors.update({id(b): b for b in part.buffers()})
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    assert abs(total.stored_bytes - held) <= 0.05 * held
    file = save({str(name): tensor.detach() for name, tensor in tensors.items()})
    payload = len(file) - 8 - int.from_bytes(file[:8], "little")  # without the header of names
    assert abs(total.stored_bytes - payload) <= 0.05 * payload
    assert total.training_bytes >= total.stored_bytes
    assert total.lookups_per_row >= 2


def check_finalise_keeps_outputs(world: World) -> None:
    """The serving form gives equal vectors and holds no more bytes."""
    shake(world.model)
    for layer in world.assembly.layers:
        final = layer.finalise()
        assert torch.equal(final(world.rows()), layer(world.rows()))
        assert final.memory().stored_bytes <= layer.memory().stored_bytes
