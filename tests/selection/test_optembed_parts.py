"""The parts of OptEmbed by hand, and its evolution against random search."""

from __future__ import annotations

from typing import Any

import numpy as np
import planted
import pytest
import torch

from recsys.selection.optembed import OptEmbed
from recsys.selection.optembed_evolution import Evolution, Genome, Space
from recsys.selection.optembed_store import SupernetStore, step

SEARCH: dict[str, Any] = {"method": "optembed", "keep": 0.4, "search_epochs": 8, "generations": 6}


def chosen(run: planted.Run) -> OptEmbed:
    assert isinstance(run.selection, OptEmbed)
    return run.selection


# -- the gate of a row -------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("size", "slope"), [(0.0, 2.0), (0.1, 1.6), (0.2, 1.2), (0.7, 0.4), (1.0, 0.4), (1.5, 0.0)]
)
def test_step_is_hard_and_its_slope_the_surrogate(size: float, slope: float, sign: float) -> None:
    x = torch.tensor(sign * size, requires_grad=True)
    y = step(x)
    y.backward()
    assert y.item() == float(sign * size > 0)
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(slope, abs=1e-6)


def supernet(run: planted.Run) -> SupernetStore:
    """The wide table of a run that searches."""
    chosen(run).search(True)
    store = chosen(run).stores[0]
    assert isinstance(store, SupernetStore)
    return store


@pytest.mark.parametrize("settings", [SEARCH, {"method": "optembed", "paper": True}])
def test_a_threshold_above_the_largest_norm_closes_exactly_its_feature(
    settings: dict[str, Any],
) -> None:
    run = planted.run(settings)
    store = supernet(run).eval()
    if not settings.get("paper"):
        store.gate.measure()
    rows = torch.arange(planted.FIELDS * planted.VALUES)
    before = store(rows)
    assert torch.equal(before, store.weight)
    mine = store.gate.owner == 1
    norms = store.gate.norms()[mine] / store.gate.unit[1]
    with torch.no_grad():
        store.gate.thresholds[1] = norms.max()  # the inequality is strict
    after = store(rows)
    assert not after[mine].any()
    assert torch.equal(after[~mine], before[~mine])
    with torch.no_grad():
        store.gate.thresholds[1] = norms.sort().values[-2]
    assert int(store(rows)[mine].any(1).sum()) == 1


def test_gradients_reach_thresholds_and_closed_rows_by_hand() -> None:
    """One row of norm 0.9 under the threshold 1.1: x = -0.2, slope 1.2, for both of them."""
    run = planted.run({"method": "optembed", "paper": True})
    store = supernet(run).eval()
    with torch.no_grad():
        store.weight[3] = torch.tensor([0.4, -0.5, 0.0, 0.0, 0.0, 0.0])
        store.gate.thresholds[0] = 1.1
    value = store(torch.tensor([3]))
    assert not value.any()
    value[0, 0].backward()  # d value / d gate = 0.4
    assert store.weight.grad is not None
    assert store.gate.thresholds.grad is not None
    assert store.weight.grad[3].tolist() == pytest.approx([0.48, -0.48, 0, 0, 0, 0], abs=1e-6)
    assert store.gate.thresholds.grad.tolist() == pytest.approx([-0.48, 0, 0], abs=1e-6)


def test_norm_is_that_of_all_layers_and_unit_follows_the_lookups() -> None:
    run = planted.run(SEARCH)
    store = supernet(run)
    wide, narrow = (one.weight.detach() for one in chosen(run).stores)
    norms = wide.abs().sum(1) + narrow.abs().sum(1)
    torch.testing.assert_close(store.gate.norms(), norms)
    store.gate.measure()
    means = norms.view(planted.FIELDS, -1).mean(1)
    torch.testing.assert_close(store.gate.unit, means)
    rows = torch.tensor([[5, 5 + planted.VALUES], [7, 7 + planted.VALUES]])
    valid = torch.tensor([[1.0], [0.0]])  # the loss does not reach the second example
    (store.train()(rows) * valid.unsqueeze(-1)).sum().backward()
    expected = means.clone()
    expected[0] += 0.05 * (norms[5] - means[0])
    expected[1] += 0.05 * (norms[5 + planted.VALUES] - means[1])
    torch.testing.assert_close(store.gate.unit, expected)


# -- drawn widths ------------------------------------------------------------------------------


def test_training_draws_even_prefixes_per_example_and_feature() -> None:
    store = supernet(planted.run(SEARCH)).train()
    torch.manual_seed(0)
    rows = torch.arange(3).repeat(4000, 1)
    values = store(rows) != 0
    widths = values.sum(-1)
    assert torch.equal(values, torch.arange(6) < widths.unsqueeze(-1))  # prefixes
    for f in range(3):
        counts = np.bincount(widths[:, f].numpy(), minlength=7)
        assert counts[0] == 0
        chi_square = ((counts[1:] - 4000 / 6) ** 2 / (4000 / 6)).sum()
        assert chi_square < 20.5  # 5 degrees of freedom, p = 0.001
    independent = np.corrcoef(widths.float().numpy().T)
    assert np.abs(independent - np.eye(3)).max() < 0.06


def test_positions_of_a_list_share_the_width_of_their_example() -> None:
    store = supernet(planted.run(SEARCH)).train()
    widths = (store(torch.arange(24).view(4, 3, 2)) != 0).sum(-1)  # (B, L, T)
    assert (widths == widths[:, :1]).all()
    assert len(widths[:, 0].unique()) > 1


def test_evaluation_draws_nothing() -> None:
    run = planted.run(SEARCH)
    store = supernet(run).eval()
    rows = torch.arange(20)
    state = torch.get_rng_state()
    assert torch.equal(store(rows), store(rows))
    assert torch.equal(store(rows), store.weight[rows])
    assert torch.equal(torch.get_rng_state(), state)


# -- evolution ---------------------------------------------------------------------------------

HIDDEN = np.array([8, 1, 5, 2, 7, 3, 6, 1, 4, 2, 8, 1])


def closeness(genome: Genome) -> float:
    """Best at `HIDDEN`; what lies above it adds nothing, as with useless columns."""
    return -float(np.maximum(HIDDEN - genome, 0).sum())


def space(most: int | None = None) -> Space:
    rows = np.array([50, 3, 20, 7, 30, 5, 11, 2, 9, 13, 40, 1])
    return Space(np.full(12, 8), rows, 10, most)


MOST = 10 + int(space().rows @ HIDDEN)


@pytest.mark.parametrize("most", [None, MOST])
def test_evolution_beats_random_search_at_the_same_number_of_evaluations(most: int | None) -> None:
    def score(genome: Genome) -> float:
        # without a budget the widest genome is trivially best: there, being too wide costs too
        return closeness(genome) - (0 if most else float(np.maximum(genome - HIDDEN, 0).sum()))

    wins = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        evolution = Evolution(space(most))
        for number in range(15):
            evolution.generation(score, rng, number)
        rng = np.random.default_rng(1000 + seed)
        tried = [space(most).drawn(rng) for _ in evolution.scores]
        wins += evolution.scores[evolution.best] > max(score(one) for one in tried)
    assert wins == 10


def test_every_candidate_fits_has_its_own_score_and_is_nobody_else() -> None:
    evolution = Evolution(space(MOST))
    rng, best = np.random.default_rng(0), []
    for number in range(12):
        before = [genome.copy() for genome in evolution.genomes]
        evolution.generation(closeness, rng, number)
        for old, kept in zip(before, evolution.genomes, strict=False):
            assert np.array_equal(old, kept)  # nothing scored is changed later
        best.append(evolution.scores[evolution.best])
    assert best == sorted(best)
    assert best[-1] > best[0]
    for genome, score in zip(evolution.genomes, evolution.scores, strict=True):
        assert genome.min() >= 1
        assert genome.max() <= 8
        assert evolution.space.cost(genome) <= MOST
        assert closeness(genome) == score
    assert len({genome.tobytes() for genome in evolution.genomes}) == len(evolution.genomes)
    buffers = {genome.__array_interface__["data"][0] for genome in evolution.genomes}
    assert len(buffers) == len(evolution.genomes)


def test_crossover_mixes_two_parents_and_mutation_changes_a_copy() -> None:
    rng, ones, eights = np.random.default_rng(0), np.ones(12, np.int64), np.full(12, 8)
    cuts = set()
    for _ in range(300):
        child = space().crossed(ones, eights, rng)
        cuts.add(int((child == 1).sum()))
        assert np.array_equal(np.sort(child), child)
        mutant = space().mutated(eights, rng)
        assert mutant is not eights
    assert cuts == set(range(1, 12))  # a gene of each, always
    assert (eights == 8).all()


def test_of_equal_scores_the_smaller_wins_and_even_is_the_widest_that_fits() -> None:
    found = Evolution(space(), genomes=[np.full(12, 5), np.full(12, 3)], scores=[0.5, 0.5])
    assert found.best == 1
    rows = int(space().rows.sum())
    assert space(10 + 4 * rows).even().tolist() == [4] * 12
    assert space(10 + 5 * rows - 1).even().tolist() == [4] * 12
