"""Product quantisation: packed codes, golden sizes, codes and gradients by hand, learning."""

from __future__ import annotations

import criteo
import numpy as np
import pytest
import torch
from embedding_cases import build, config
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recsys.embeddings.codebook_store import CodeStore, QuantisingStore, nearest_of
from recsys.embeddings.codes import PackedCodes, code_bits, packed_bytes
from recsys.embeddings.product_quant import ProductQuant
from recsys.settings import TrainConfig
from recsys.training.optimizers import build_optimizers
from recsys.types import FieldSpec, InputError


@settings(max_examples=40, deadline=None)
@given(
    head=st.integers(0, 20),
    tail=st.integers(0, 20),
    parts=st.integers(1, 5),
    head_bits=st.integers(1, 8),
    tail_bits=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_packed_codes_come_back(
    head: int, tail: int, parts: int, head_bits: int, tail_bits: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    codes = np.concatenate(
        [rng.integers(0, 2**head_bits, (head, parts)), rng.integers(0, 2**tail_bits, (tail, parts))]
    )
    packed = PackedCodes(
        codes=torch.from_numpy(codes), head=head, head_bits=head_bits, tail_bits=tail_bits
    )
    rows = torch.arange(head + tail)
    assert np.array_equal(torch.jit.script(packed)(rows).numpy(), codes)
    size = packed_bytes(head=head, tail=tail, parts=parts, head_bits=head_bits, tail_bits=tail_bits)
    assert packed.packed.numel() == size


def test_bits() -> None:
    assert [code_bits(n) for n in (2, 3, 64, 65, 255, 256)] == [1, 2, 6, 7, 8, 8]


def criteo_plan(**keys: object) -> ProductQuant:
    tree = {"method": "product_quant", "embedding_dim": 16, "head": 0.1, **keys}
    return ProductQuant(config(tree), criteo.FIELDS, {"main": 16})


@pytest.mark.parametrize(("parts", "share"), [(8, 0.160), (4, 0.111), (2, 0.087)])
def test_golden_sizes_of_mgqe(parts: int, share: float) -> None:
    """The published counts hold a word per id for its rank in frequency; ids sorted by frequency
    need none, so that one sixteenth less is stored."""
    plan = criteo_plan(parts=parts, centroids=256, tail_centroids=64)
    stored = plan.stored_bytes()
    assert round((stored + 4 * sum(criteo.SIZES)) / criteo.TABLE_BYTES, 3) == share
    assert stored / criteo.TABLE_BYTES == pytest.approx(share - 1 / 16, abs=1e-3)


def test_budgets_of_criteo() -> None:
    """parts 8, 4, 2, 1 of 256 and 64 centroids take .097, .048, .024 and .012 of the table."""
    for budget, parts in ((0.1, 8), (0.05, 4), (0.025, 2)):
        plan = criteo_plan(budget=budget, centroids=256)
        assert plan.parts == parts
        assert plan.stored_bytes() <= budget * criteo.TABLE_BYTES + 64 * len(criteo.SIZES)
    with pytest.raises(InputError, match="needs at least"):
        criteo_plan(budget=0.01, centroids=256)
    free = criteo_plan(budget=0.01)
    assert free.centroids < 256
    assert free.stored_bytes() <= 0.01 * criteo.TABLE_BYTES + 64 * len(criteo.SIZES)


def store(head: int = 3, strength: float = 1.0) -> QuantisingStore:
    """Three head rows and one of the tail; two parts of one number; centroids 0 and 4 are open to
    all, 8 to the head."""
    weight = torch.tensor([[1.0, 3.0], [9.0, -2.0], [5.0, 7.0], [9.0, 9.0]])
    made = QuantisingStore(
        weight=weight,
        sparse=False,
        parts=2,
        centroids=3,
        head=head,
        tail_centroids=2,
        bits=(2, 1),
        strength=strength,
    )
    with torch.no_grad():
        made.centroids.copy_(torch.tensor([0.0, 4, 8]).view(1, 3, 1).expand(2, 3, 1))
    return made


def test_codes_by_hand() -> None:
    made = store()
    rows = torch.arange(4)
    expected = [[0, 1], [2, 0], [1, 2], [1, 1]]  # the tail's 9 may not use centroid 8
    assert made.nearest(rows).tolist() == expected
    vectors = [[0.0, 4], [8, 0], [4, 8], [4, 4]]
    assert made(rows).tolist() == vectors
    assert made.eval()(rows.view(2, 2)).tolist() == [vectors[:2], vectors[2:]]
    final = made.finalise()
    assert isinstance(final, CodeStore)
    assert final(rows).tolist() == vectors
    assert final.codes.packed.numel() == 2 + 1 + 1  # 12 bits, 2 bits, one byte behind
    assert final.memory(TrainConfig(), 9).stored_bytes == 4 * 6 + 4


@settings(max_examples=40, deadline=None)
@given(
    parts=st.integers(1, 4),
    count=st.integers(1, 9),
    width=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_nearest_is_nearest(parts: int, count: int, width: int, seed: int) -> None:
    """By bisection as by distance; some centroids are equal, some queries lie on one."""
    draw = torch.Generator().manual_seed(seed)
    centroids = torch.randn(parts, count, width, generator=draw).double()
    centroids[:, count // 2] = centroids[:, 0]
    query = torch.cat([torch.randn(parts, 20, width, generator=draw).double(), centroids], 1)
    found = nearest_of(query, centroids)
    distances = torch.cdist(query, centroids)
    chosen = distances.gather(2, found.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(chosen, distances.min(2).values, rtol=0, atol=1e-7)


def test_gradients_by_hand() -> None:
    """Straight through to the queries; centroids: 2 w (c - q) / n over what the loss reaches."""
    made = store(strength=3.0)
    rows = torch.tensor([0, 2, 3])
    weight = torch.tensor([[1.0, 2.0], [5.0, -1.0], [0.0, 0.0]])  # row 3 is not reached
    (made(rows) * weight).sum().backward()
    expected = torch.zeros(4, 2)
    expected[0], expected[2] = weight[0], weight[1]
    assert torch.equal(made.weight.grad, expected)
    scale = 2 * 3.0 / 4  # two vectors of two numbers
    pulls = [[0.0 - 1.0, 4.0 - 5.0, 0.0], [0.0, 4.0 - 3.0, 8.0 - 7.0]]
    torch.testing.assert_close(
        made.centroids.grad.squeeze(-1), scale * torch.tensor(pulls), rtol=0, atol=1e-6
    )


def test_small_fields_and_narrow_layers() -> None:
    fields = tuple(FieldSpec(f"n{n}", "categorical", num_ids=n) for n in (2000, 20))
    tree = {"method": "product_quant", "parts": 4, "centroids": 32}
    _, layers = build(tree, fields, {"main": 16, "half": 8, "one": 1})
    for name, parts in (("main", 4), ("half", 2), ("one", 1)):
        exact, coded = layers[name].tables
        assert exact.weight.shape == (20, layers[name].dim)
        assert isinstance(coded, QuantisingStore)
        assert coded.parts == parts
        assert coded.centroids.shape == (parts, 32, layers[name].dim // parts)


@pytest.mark.parametrize("mode", ["all_rows", "touched_rows", "decoupled"])
def test_l2_leaves_centroids_alone(mode: str) -> None:
    train = {"embedding_l2": {"value": 0.5, "mode": mode}, "embedding_gradient": "dense"}
    fields = (FieldSpec("a", "categorical", num_ids=500),)
    layer = build({"method": "product_quant", "centroids": 16}, fields, {"main": 16}, **train)[1][
        "main"
    ]
    (table,) = layer.tables
    assert isinstance(table, QuantisingStore)
    assert layer.penalised() == [table.centroids]
    optimizers = build_optimizers(layer, TrainConfig.model_validate(train))
    before = [table.weight.detach().clone(), table.centroids.detach().clone()]
    table.weight.grad = torch.ones_like(table.weight) * 1e-12
    table.centroids.grad = torch.zeros_like(table.centroids)
    optimizers.step()
    assert not torch.equal(table.weight, before[0])
    assert torch.equal(table.centroids, before[1])


def test_clusters_are_learned() -> None:
    """2,000 ids of 32 kinds: 16 centroids in each of two parts find vectors that explain .95 of
    what the full table could, and few centroids die."""
    torch.manual_seed(0)
    kinds = torch.randn(32, 4)
    kind = torch.arange(2000) % 32
    fields = (FieldSpec("a", "categorical", num_ids=2000),)
    tree = {"method": "product_quant", "embedding_dim": 4, "parts": 2, "centroids": 32}
    layer = build(tree, fields, {"main": 4})[1]["main"]
    train = TrainConfig(learning_rate=0.02)
    optimizers = build_optimizers(layer, train)
    (table,) = layer.tables
    assert isinstance(table, QuantisingStore)
    for _ in range(600):
        ids = torch.randint(0, 2000, (512,))
        optimizers.zero_grad()
        (table(ids) - kinds[kind[ids]]).square().sum(1).mean().backward()
        optimizers.step()
    final = layer.finalise()
    vectors = final.all_vectors(0).detach()
    error = (vectors - kinds[kind]).square().mean() / kinds.square().mean()
    assert float(error) < 0.05
    used = [len(table.nearest(torch.arange(2000))[:, part].unique()) for part in range(2)]
    assert min(used) >= 24
    assert torch.equal(final.all_vectors(0), layer.eval().all_vectors(0))


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="parts 3 must divide embedding_dim 16"):
        config({"method": "product_quant", "parts": 3})
    with pytest.raises(ValidationError, match="no effect at head 1"):
        config({"method": "product_quant", "centroids": 64, "tail_centroids": 16})
    with pytest.raises(ValidationError, match="must not exceed"):
        config({"method": "product_quant", "head": 0.1, "centroids": 8, "tail_centroids": 16})
    with pytest.raises(ValidationError, match="less than or equal to 256"):
        config({"method": "product_quant", "centroids": 257})
