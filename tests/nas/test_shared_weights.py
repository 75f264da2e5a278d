"""One set of weights for all networks: any of them is exactly the network built from its slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys.embeddings import EmbeddingLayer, build_embeddings
from recsys.embeddings.full import FullConfig
from recsys.layers.block_config import BlockConfig
from recsys.models.nasrec import ChoiceNet, NASRec, NASRecConfig
from recsys.nas import SharedNASRec, Space
from recsys.settings import TrainConfig
from recsys.types import Batch, FieldSpec

DIM = 4
SPACE = Space(blocks=4, widths=(4, 8, 16), counts=(2, 3, 5))
FIELDS = (
    FieldSpec("user", "categorical", num_ids=5),
    FieldSpec("item", "categorical", num_ids=7),
    FieldSpec("price", "numeric"),
    FieldSpec("age", "numeric"),
    FieldSpec("tags", "bag", num_ids=3, pooling="sum"),
)


def layer() -> EmbeddingLayer:
    table = FullConfig(method="full", embedding_dim=DIM, init_std=0.5)
    return build_embeddings(table, FIELDS, {"embedding": DIM}, train=TrainConfig())[1]["embedding"]


@pytest.fixture
def shared() -> SharedNASRec:
    torch.manual_seed(0)
    made = SharedNASRec(SPACE, FIELDS, layer())
    with torch.no_grad():  # norms and biases that are not where they start
        for param in made.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return made


def batch(rows: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(1)
    ids = torch.stack(
        [torch.randint(0, 5, (rows,), generator=rng), torch.randint(5, 12, (rows,), generator=rng)],
        dim=1,
    )
    floats = torch.randn(rows, 2, generator=rng)
    floats[0, 0] = torch.nan
    tags = torch.randint(12, 15, (rows, 2, 1), generator=rng)
    return Batch(ids, floats, [tags], torch.full((rows, 1), 2))


def built(shared: SharedNASRec, blocks: tuple[BlockConfig, ...]) -> NASRec:
    """The stand-alone network with the slices of the shared weights."""
    model = NASRec(NASRecConfig(blocks=blocks), FIELDS, {"embedding": shared.embedding})
    slices = {name: weight.detach().clone() for name, weight in shared.slices().items()}
    model.net.load_state_dict(slices, strict=True)
    return model


@pytest.mark.parametrize("seed", range(12))
def test_a_chosen_network_is_the_one_that_is_built_from_its_slices(
    shared: SharedNASRec, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    genome = SPACE.widest(rng) if seed == 0 else SPACE.sampled(rng)
    shared.chosen = SPACE.decode(genome)
    alone = built(shared, shared.chosen)
    torch.testing.assert_close(shared(batch()), alone(batch()))
    dense, sparse = alone.stem(alone.embedding(batch()))
    torch.testing.assert_close(shared.last(batch()), alone.net.last(dense, sparse))


def test_gradients_reach_the_slices_and_nothing_else(shared: SharedNASRec) -> None:
    rng = np.random.default_rng(3)
    shared.chosen = SPACE.decode(SPACE.sampled(rng))
    alone = built(shared, shared.chosen)
    shared(batch()).square().sum().backward()
    table = shared.embedding.tables[0].weight
    moved = table.grad
    assert moved is not None
    table.grad = None
    alone(batch()).square().sum().backward()
    torch.testing.assert_close(moved, table.grad)
    used = sum(int((p.grad != 0).sum()) for p in weights(shared) if p.grad is not None)
    own = sum(int((p.grad != 0).sum()) for p in alone.net.parameters() if p.grad is not None)
    assert 0 < used == own
    op = shared.chosen[0].dense_op
    for name, module in shared.dense_ops[0].items():  # type: ignore[operator,union-attr]
        learned = any(p.grad is not None for p in module.parameters())
        assert learned == (name == op), name


def weights(shared: SharedNASRec) -> list[nn.Parameter]:
    return [p for name, p in shared.named_parameters() if not name.startswith("embedding")]


def test_networks_share_what_they_have_in_common(shared: SharedNASRec) -> None:
    """A step on one network moves another that uses the same weights."""
    rng = np.random.default_rng(5)
    one, other = SPACE.sampled(rng), SPACE.widest(rng)
    shared.chosen = SPACE.decode(other)
    before: Tensor = shared(batch()).detach()
    shared.chosen = SPACE.decode(one)
    step = torch.optim.SGD(weights(shared), lr=0.1)
    shared(batch()).sum().backward()
    step.step()
    shared.chosen = SPACE.decode(other)
    assert not torch.allclose(shared(batch()), before)


def test_a_skeleton_has_no_weights_of_its_own(shared: SharedNASRec) -> None:
    shared.chosen = SPACE.decode(SPACE.widest(np.random.default_rng(0)))
    net = shared.skeleton()
    assert isinstance(net, ChoiceNet)
    assert all(param.is_meta for param in net.parameters())
    assert set(shared.slices()) == {name for name, _ in net.named_parameters()}
    for name, param in net.named_parameters():
        assert shared.slices()[name].shape == param.shape, name
