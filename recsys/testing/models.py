"""Laws of models."""

from __future__ import annotations

import copy
import io

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys.build import build
from recsys.embeddings import build_embeddings
from recsys.models import MODELS
from recsys.settings import TrainConfig
from recsys.testing.world import World, graph, shake
from recsys.training.metrics import auc
from recsys.training.optimizers import build_optimizers
from recsys.types import Batch, FieldSpec


def check_any_batch_size(world: World) -> None:
    """0, 1 and 5 rows give finite logits of shape (B,)."""
    model = world.model.eval()
    for count in (0, 1, 5):
        logits = model(world.rows(0, count))
        assert logits.shape == (count,)
        assert torch.isfinite(logits).all()


def check_every_parameter_gets_a_gradient(world: World) -> None:
    """No dead weights: one backward pass reaches every parameter."""
    shake(world.model)
    world.model.train()
    world.model(world.rows()).square().sum().backward()
    for name, parameter in world.model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        assert grad.abs().sum() > 0, f"{name} gets a zero gradient"


def check_every_trained_tensor_moves(world: World) -> None:
    """One step moves the network's parameters, and what the tables learn, floats or not."""
    shake(world.model)
    world.model.train()
    layers = world.assembly.layers
    ours = {id(p) for layer in layers for p in layer.parameters()}
    trained: list[Tensor] = [p for p in world.model.parameters() if id(p) not in ours]
    trained += [tensor for layer in layers for tensor in layer.trained()]
    before = [tensor.detach().clone() for tensor in trained]
    optimizers = build_optimizers(world.model, TrainConfig(learning_rate=0.1))
    optimizers.zero_grad()
    world.model(world.rows()).square().sum().backward()
    optimizers.step()
    for old, new in zip(before, trained, strict=True):
        assert not torch.equal(old, new), f"a trained tensor {tuple(new.shape)} stands still"


def check_a_row_scores_the_same_alone(world: World) -> None:
    """In evaluation a row's logit does not depend on the rows beside it."""
    model = shake(world.model).eval()
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
    module = graph(world)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    for count in (0, 1, 2, 7, 50):
        raw = world.raw(0, count)
        torch.testing.assert_close(scripted(*raw), module(*raw), atol=1e-6, rtol=0)


def check_export_equals_eager(world: World) -> None:
    """`torch.export` with a dynamic batch gives the eager graph's scores."""
    module = graph(world)
    raw = world.raw(0, 20)
    rows, lengths = torch.export.Dim("rows", min=0), []
    for f in range(len(raw.lists)):
        lengths.append({0: rows, 1: torch.export.Dim(f"length{f}", min=0)})
    shapes = ({0: rows}, {0: rows}, lengths, {0: rows})
    program = torch.export.export(module, tuple(raw), dynamic_shapes=shapes).module()
    for first, count in ((0, 0), (0, 1), (3, 2), (5, 7), (0, 50)):
        other = world.raw(first, count)
        torch.testing.assert_close(program(*other), module(*other), atol=1e-6, rtol=0)


def check_weights_round_trip(world: World) -> None:
    """A state dict moved into a fresh build gives equal logits."""
    model = shake(world.model).eval()
    fresh = build(world.config.model_copy(update={"seed": 99}), world.features).model.eval()
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(fresh(world.rows()), model(world.rows()))


def planted_auc(world: World, *, steps: int = 250) -> float:
    """AUC on fresh rows after training the world's model on a planted interaction.

    Four fields of ten values; the label is whether the hidden signs of the first two agree. Each
    field alone says nothing, so a model without interactions stays at one half.
    """
    config = world.config
    fields = [FieldSpec(f"f{i}", "categorical", num_ids=10) for i in range(4)]
    torch.manual_seed(config.seed)
    kind = MODELS[config.model.name]
    dims = kind.tables(config.model, config.embedding.embedding_dim)
    train = config.train.model_copy(update={"learning_rate": 0.01})
    id_map, layers = build_embeddings(config.embedding, fields, dims, train=train)
    model = kind(config.model, tuple(fields), layers)
    optimizers = build_optimizers(model, train)
    rng = np.random.default_rng(0)

    def rows(count: int) -> tuple[Batch, torch.Tensor]:
        ids = torch.from_numpy(rng.integers(0, 10, (count, 4)))
        agree = (ids[:, 0] % 2 == ids[:, 1] % 2).float()
        none = torch.zeros(count, 0)
        return id_map(Batch(ids, none, [], none.long())), agree

    model.train()
    for _ in range(steps):
        batch, label = rows(1024)
        optimizers.zero_grad()
        F.binary_cross_entropy_with_logits(model(batch), label).backward()
        optimizers.step()
    batch, label = rows(4096)
    with torch.inference_mode():
        return auc(label.numpy(), model.eval()(batch).numpy())


def check_learns_a_planted_interaction(world: World) -> None:
    """Nearly perfect where the label is an interaction of two fields; see `planted_auc`.

    Not a law for a model that claims no interactions (logistic regression).
    """
    assert planted_auc(world) > 0.95
