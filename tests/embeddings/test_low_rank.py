"""Low rank: sizes by hand, the rank of the vectors, the largest rank that fits."""

from __future__ import annotations

import pytest
import torch
from embedding_cases import build, config
from pydantic import ValidationError

from recsys.embeddings.low_rank import LowRank
from recsys.types import FieldSpec, InputError

SIZES = (10, 200, 3000)
FIELDS = tuple(FieldSpec(f"n{n}", "categorical", num_ids=n) for n in SIZES)
DIMS = {"main": 16, "first_order": 1}


def plan(**keys: object) -> LowRank:
    return LowRank(config({"method": "low_rank", **keys}), FIELDS, DIMS)


def test_sizes_by_hand() -> None:
    solved = plan(rank=6)
    # 10 ids: 6 (10 + 16) = 156 floats, exact they are 160; at rank 7 182
    assert solved.widths == [6, 6, 6]
    assert plan(rank=7).widths == [16, 7, 7]
    words = 7 * (200 + 3000) + 2 * 7 * 16 + 160 + 3210  # tables, projections, exact, first order
    _, layers = build({"method": "low_rank", "rank": 7}, FIELDS, DIMS)
    stored = sum(layer.memory().stored_bytes for layer in layers.values())
    assert 4 * words < plan(rank=7).stored_bytes() == stored
    assert plan(rank=7, projections="fixed").stored_bytes() == stored
    trained = sum(layer.memory().trainable_params for layer in layers.values())
    assert trained == words
    assert plan().rank == 8


def test_rank_is_the_rank() -> None:
    _, layers = build({"method": "low_rank", "rank": 5}, FIELDS, DIMS)
    for f, n in enumerate(SIZES):
        matrix = layers["main"].all_vectors(f).detach().double()
        assert int(torch.linalg.matrix_rank(matrix, rtol=1e-5)) == 5
        assert int(torch.linalg.matrix_rank(layers["first_order"].all_vectors(f).detach())) == 1
        assert len(matrix) == n


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25, 0.13])
def test_a_budget_takes_the_largest_rank_that_fits(share: float) -> None:
    solved = plan(budget=share)
    limit = int(share * 4 * 17 * sum(SIZES)) + 64 * 3
    assert solved.stored_bytes() <= limit
    if solved.rank < 16:
        assert plan(rank=solved.rank + 1).stored_bytes() > limit
    assert plan(budget=1.0).rank == 16


def test_l2_is_that_of_the_vectors() -> None:
    """And not of the factors, whose penalty would lower the rank."""
    train = {"embedding_l2": {"value": 0.3}, "embedding_gradient": "dense"}
    layer = build({"method": "low_rank", "rank": 4}, FIELDS, **train)[1]["main"]
    vectors = torch.cat([layer.all_vectors(f) for f in range(3)])
    torch.testing.assert_close(layer.penalty(), 0.3 * vectors.square().sum() / 2)
    assert len(layer.penalised()) == 2  # the table and the projections


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="rank or budget, not both"):
        config({"method": "low_rank", "rank": 4, "budget": 0.5})
    with pytest.raises(ValidationError, match="rank 17 must not exceed embedding_dim 16"):
        config({"method": "low_rank", "rank": 17})
    with pytest.raises(InputError, match="at rank 1"):
        plan(budget=0.01)
