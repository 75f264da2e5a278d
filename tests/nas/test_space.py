"""The space of networks, and regularised evolution in it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from recsys.layers.block_config import BlockConfig
from recsys.models.nasrec import ChoiceNet, NASRecConfig
from recsys.nas.evolution import Evolution
from recsys.nas.space import OPS, Genome, Space, live
from recsys.types import InputError

SPACE = Space(blocks=5, widths=(4, 8, 16), counts=(2, 4))


def test_samples_are_networks_with_one_operator_of_each_kind_evenly() -> None:
    rng = np.random.default_rng(0)
    dense: Counter[str] = Counter()
    sparse: Counter[str] = Counter()
    sources = []
    for _ in range(600):
        blocks = SPACE.decode(SPACE.sampled(rng))
        NASRecConfig(blocks=blocks)  # sources come before
        dense.update(block.dense_op for block in blocks)
        sparse.update(block.sparse_op for block in blocks)
        sources.append([len(block.dense_from) for block in blocks])
    for counted, kinds in ((dense, 4), (sparse, 2)):
        assert len(counted) == kinds
        assert max(counted.values()) < 1.15 * min(counted.values())
    found = np.array(sources)
    assert found[:, 0].max() == 1  # the first block has the stem alone
    assert found.max() == 4
    assert found[:, 4].mean() == pytest.approx(1 + 3 / 2, abs=0.1)
    assert found[:, 1].mean() == pytest.approx(1 + 1 / 2, abs=0.1)


def test_small_space_has_the_operators_of_the_paper() -> None:
    dense, sparse = OPS["small"]
    space = Space(blocks=3, dense_ops=dense, sparse_ops=sparse)
    rng = np.random.default_rng(0)
    blocks = [block for _ in range(50) for block in space.decode(space.sampled(rng))]
    assert {block.dense_op for block in blocks} == {"fc", "dot_product"}
    assert {block.sparse_op for block in blocks} == {"embed_fc"}


def test_the_widest_network_is_all_of_the_weights() -> None:
    for place, block in enumerate(SPACE.decode(SPACE.widest(np.random.default_rng(1)))):
        assert block.dense_width == 16
        assert block.sparse_count == 4
        assert block.dense_from == block.sparse_from == tuple(range(place + 1))
        assert block.to_dense
        assert block.to_sparse


def test_a_mutation_changes_one_block_in_one_respect() -> None:
    rng = np.random.default_rng(2)
    parent = SPACE.sampled(rng)
    before = parent.copy()
    changed: Counter[str] = Counter()
    for _ in range(400):
        child = SPACE.mutated(parent, rng)
        pairs = zip(SPACE.decode(parent), SPACE.decode(child), strict=True)
        different = [(a, b) for a, b in pairs if a != b]
        assert len(different) <= 1
        for a, b in different:
            keys = {key for key in BlockConfig.model_fields if getattr(a, key) != getattr(b, key)}
            assert len(keys) == 1 or keys <= {"dense_op", "sparse_op", "right_from"}
            changed.update(keys)
    assert (parent == before).all()
    assert set(changed) == set(BlockConfig.model_fields)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"blocks": 0}, "blocks 0: must be from 1 to 32"),
        ({"widths": (8, 8)}, "widths .* give different numbers"),
        ({"counts": ()}, "counts"),
    ],
)
def test_spaces_that_cannot_be(keys: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Space(**keys)  # type: ignore[arg-type]


def cost(genome: Genome) -> float:
    """A known optimum: dot products over everything, narrow, without mergers."""
    total = 0.0
    for place, block in enumerate(SPACE.decode(genome)):
        total += block.dense_op != "dot_product"
        total += (place + 1 - len(block.dense_from)) / (place + 1)
        total += block.dense_width / 16 + block.to_dense + block.to_sparse
    return total


def evolved(seed: int = 0, generations: int = 30) -> Evolution:
    evolution = Evolution(SPACE, population=24, generations=generations, children=8, tournament=12)
    for number in range(generations):
        evolution.generation(cost, np.random.default_rng([seed, number]), number)
    return evolution


def test_evolution_beats_random_search_at_the_same_cost() -> None:
    wins = 0
    for seed in range(5):
        evolution = evolved(seed)
        rng = np.random.default_rng([seed, 99])
        drawn = [cost(SPACE.sampled(rng)) for _ in evolution.scores]
        wins += min(evolution.scores) < min(drawn) - 0.5
    assert wins == 5


def test_no_network_is_scored_twice_and_runs_are_reproducible() -> None:
    evolution = evolved()
    networks = [SPACE.network(genome) for genome in evolution.genomes]
    assert len(set(networks)) == len(networks) == 24 + 29 * 8
    assert evolution.scores == [cost(genome) for genome in evolution.genomes]
    assert evolved().scores == evolution.scores
    ranked = [evolution.scores[place] for place in evolution.ranked()]
    assert ranked == sorted(evolution.scores)


def test_the_oldest_die_however_good() -> None:
    """A winner has no children once eight are younger."""
    evolution = Evolution(SPACE, population=8, generations=40, children=4, tournament=8)
    evolution.generation(lambda _: 1.0, np.random.default_rng(0), 0)
    evolution.scores[7] = -1.0
    winner, parents = evolution.genomes[7], []
    seen: list[Genome] = []
    original = SPACE.mutated

    class Watched(Space):
        def mutated(self, parent: Genome, rng: np.random.Generator) -> Genome:
            seen.append(parent)
            return original(parent, rng)

    evolution.space = Watched(**{key: getattr(SPACE, key) for key in SPACE.__dataclass_fields__})
    for number in range(1, 6):
        seen.clear()
        evolution.generation(lambda _: 1.0, np.random.default_rng(number), number)
        parents.append(any((parent == winner).all() for parent in seen))
    assert parents == [True, True, False, False, False]


def test_a_space_that_is_used_up_ends_quietly() -> None:
    tiny = Space(
        blocks=1, dense_ops=("fc",), sparse_ops=("embed_fc",), widths=(4,), counts=(2,)
    )  # fmt: skip
    evolution = Evolution(tiny, population=20, generations=3, children=8, tournament=4)
    assert evolution.generation(lambda _: 0.0, np.random.default_rng(0), 0) == 4  # the mergers
    assert evolution.generation(lambda _: 0.0, np.random.default_rng(1), 1) == 0


def test_what_nothing_reads_is_not_part_of_a_network() -> None:
    def block(**keys: object) -> BlockConfig:
        return BlockConfig(**{"dense_from": (0,), "sparse_from": (0,)} | keys)  # type: ignore[arg-type]

    dead = block(dense_width=99)
    vectors_alone = block(dense_op="gating", right_from=(0,), sparse_count=7, to_dense=True)
    last = block(dense_from=(0,), sparse_from=(2,), dense_width=5)
    found = live([dead, vectors_alone, last])
    assert len(found) == 2
    assert found[0] == block(dense_width=1, sparse_count=7)  # its dense half is read by nobody
    assert found[1] == block(dense_width=5, sparse_from=(1,))
    through = block(dense_width=3, to_sparse=True)  # its dense half reaches its vectors
    assert live([through, block(sparse_from=(1,))]) == (through, block(sparse_from=(1,)))
    dots = block(dense_op="dot_product", sparse_from=(1,), sparse_op="transformer")
    half = live([block(sparse_count=4), dots, block(dense_from=(2,))])
    assert half[1] == dots.model_copy(update={"sparse_op": "embed_fc", "sparse_count": 1})
    assert half[0] == block(dense_width=1, sparse_count=4)


def test_a_live_network_computes_the_same() -> None:
    rng = np.random.default_rng(4)
    shorter = 0
    for seed in range(20):
        blocks = SPACE.decode(SPACE.sampled(rng))
        torch.manual_seed(seed)
        whole = ChoiceNet(blocks, width=6, count=3, dim=4)
        part = ChoiceNet(live(blocks), width=6, count=3, dim=4)
        shorter += len(part.blocks) < len(blocks)
        dense, sparse = torch.randn(5, 6), torch.randn(5, 3, 4)
        out = whole(dense, sparse)
        gradients = torch.autograd.grad(out.sum(), list(whole.parameters()), allow_unused=True)
        used = sum(g.numel() for g in gradients if g is not None)
        spare = sum(p.numel() for p in part.parameters()) - used
        assert 0 <= spare < 500  # the cheapest halves that nothing reads
        assert sum(p.numel() for p in part.parameters()) <= sum(
            p.numel() for p in whole.parameters()
        )
    assert shorter > 0


def test_a_block_reads_only_what_comes_before() -> None:
    late = BlockConfig(dense_from=(2,), sparse_from=(0,))
    with pytest.raises(
        ValidationError, match=r"blocks.0.dense_from names block 2, which comes later"
    ):
        NASRecConfig(blocks=(late, late))
