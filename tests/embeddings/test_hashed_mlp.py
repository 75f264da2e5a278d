"""Deep hash embeddings: codes, the network by numpy, sizes, normalisation, serving, learning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from computed_cases import fields, learned_auc, plan
from embedding_cases import DIMS, FIELDS, build, config, encoded
from pydantic import ValidationError
from torch import nn

from recsys.embeddings.budget import budget_bytes
from recsys.embeddings.hashed_mlp import HashedMlp
from recsys.embeddings.hashed_mlp_store import (
    MISH_SQUARE,
    REFERENCE,
    FoldedNetworkStore,
    HashedMlpStore,
    hash_codes,
)
from recsys.features.hashing import salt
from recsys.settings import TrainConfig
from recsys.training.optimizers import build_optimizers
from recsys.types import Batch, FieldSpec, InputError

WORD = 2**64


def store(std: float = 0.5, width: int = 4, **changed: int | float) -> HashedMlpStore:
    settings = {"salt": 11, "reference_salt": 12, "buckets": 1000, "code": 16, "hidden": 2}
    return HashedMlpStore(**{**settings, "wide": 6, **changed}, width=width, std=std)  # type: ignore[arg-type]


def mix(x: int) -> int:
    """splitmix64 in plain integers."""
    z = (x + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def test_golden_widths() -> None:
    """The solver's table for the 26 Criteo fields, width 16, k = 1024."""
    for share, width in ((0.5, 3626), (0.1, 1372), (0.01, 271), (0.001, 29)):
        assert plan("hashed_mlp", share).size == width


def test_published_size() -> None:
    """(k + 1) h + 4 h (h + 1) + (h + 1) d + 10 h; the 5 h idle biases are not stored."""
    method = HashedMlp(config({"method": "hashed_mlp", "width": 29}), FIELDS, {"main": 16})
    words = 1025 * 29 + 4 * 29 * 30 + 30 * 16 + 290
    assert method.words(10**6, 16, 29) == words
    made = store(code=1024, hidden=5, wide=29, width=16)
    assert sum(p.numel() for p in made.parameters()) == words - 5 * 29


def test_codes_in_plain_integers() -> None:
    keys = [0, 5, 2**62, -3]
    codes = hash_codes(torch.tensor(keys), 7, 1_000_000)
    for key, code in zip(keys, codes.tolist(), strict=True):
        seed = mix(key % WORD)
        expected = [
            2 * (mix((seed + j * 0x9E3779B97F4A7C15) % WORD) % 2**63 % 1_000_000) / 999_999 - 1
            for j in range(7)
        ]
        assert code == pytest.approx(expected, abs=1e-6)


def test_codes_are_uniform_and_unrelated() -> None:
    codes = hash_codes(torch.arange(20_000), 8, 1_000_000).double()
    assert float(codes.min()) >= -1
    assert float(codes.max()) <= 1
    assert len(codes[:, :2].unique(dim=0)) == 20_000  # no two ids alike
    assert float(codes.mean(0).abs().max()) < 5 / np.sqrt(3 * 20_000)
    gram = codes.T @ codes / 20_000  # a third on the diagonal
    torch.testing.assert_close(gram, torch.eye(8).double() / 3, atol=5 / 3 / 140, rtol=0)


def test_network_by_numpy() -> None:
    torch.manual_seed(0)
    made = store()
    with torch.no_grad():
        for affine in made.affine:
            affine.add_(0.3 * torch.randn(affine.shape))
    ids = torch.tensor([3, 10**12, 8])

    def codes(keys: torch.Tensor) -> np.ndarray:
        return hash_codes(keys, 16, 1000).double().numpy()

    x, reference = codes(ids + 11), codes(torch.arange(REFERENCE) + 12)
    for weight, affine in zip(made.weights, made.affine, strict=True):
        w, (scale, shift) = weight.detach().double().numpy(), affine.detach().double().numpy()
        z, moments = x @ w, reference @ w
        mean, deviation = moments.mean(0), np.sqrt(moments.var(0) + 1e-5)
        z, moments = ((v - mean) / deviation * scale + shift for v in (z, moments))
        x, reference = (v * np.tanh(np.log1p(np.exp(v))) for v in (z, moments))  # Mish
    expected = x @ made.out.detach().double().numpy() + made.bias.detach().double().numpy()
    np.testing.assert_allclose(made(ids).detach().numpy(), expected, atol=1e-5)


def test_neighbours_make_no_difference_in_training_or_evaluation() -> None:
    torch.manual_seed(0)
    made = store()
    ids = torch.randint(0, 10**9, (40,))
    for training in (True, False):
        made.train(training)
        together = made(ids)
        alone = torch.cat([made(one[None]) for one in ids])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        assert made(ids[:0]).shape == (0, 4)


def test_parts_and_repeats_give_equal_vectors_and_gradients() -> None:
    torch.manual_seed(0)
    made = store()
    ids = torch.randint(0, 50, (20, 8))
    wanted = torch.randn(20, 8, 4)

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        made.zero_grad()
        out = made(ids)
        (out * wanted).sum().backward()
        return out.detach(), [p.grad.clone() for p in made.parameters() if p.grad is not None]

    whole, gradients = run()
    made.part = 7
    parts, again = run()
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    assert len(gradients) == len(again) == 6
    for one, other in zip(gradients, again, strict=True):
        assert float(one.abs().sum()) > 0
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_serving_form_is_smaller_and_equal_to_the_bit() -> None:
    torch.manual_seed(0)
    made = store()
    final = made.finalise()
    ids = torch.randint(-(2**62), 2**62, (30,))
    assert isinstance(final, FoldedNetworkStore)
    assert torch.equal(final(ids), made(ids))
    assert final.finalise() is final
    before, after = (sum(p.numel() for p in s.parameters()) for s in (made, final))
    assert before - after == 2 * 6  # one shift for scale and shift, in each of two layers


def test_vectors_start_as_those_of_a_full_table() -> None:
    torch.manual_seed(0)
    assert float(torch.nn.functional.mish(torch.randn(10**6)).square().mean()) == pytest.approx(
        MISH_SQUARE, rel=0.01
    )
    made = store(std=1e-4, width=16, wide=128, code=64)
    with torch.no_grad():
        assert float(made(torch.arange(5000)).square().mean().sqrt()) == pytest.approx(
            1e-4, rel=0.15
        )


def test_l2_is_that_of_the_rows() -> None:
    torch.manual_seed(0)
    made = store(rows=3000, l2=0.1)
    with torch.no_grad():
        expected = 0.05 * float(made(torch.arange(3000)).square().sum())
        drawn = [made.penalty() for _ in range(20)]
    mean = float(np.mean([float(value) for value in drawn if value is not None]))
    assert mean == pytest.approx(expected, rel=0.05)
    assert len(made.penalised()) == 6
    assert store().penalty() is None
    assert store(rows=3000).penalised() == []


def test_plan_and_layers() -> None:
    """Width 4, k = 8: 36 + 80 + 80 + 40 = 236 floats at dimension 16, so color (160) stays."""
    made = config({"method": "hashed_mlp", "hashes": 8, "width": 4})
    method = HashedMlp(made, FIELDS, DIMS)
    assert method.words(None, 16, 4) == 9 * 4 + 4 * 4 * 5 + 5 * 16 + 10 * 4
    assert [owner.name for owner in method.computed] == ["shop", "item", "tags"]
    assert method.solution() == {"width": 4, "exact_features": 1}
    # first-order: a sixteenth of the words is less than width 1 takes (9 + 8 + 2 + 10 = 29)
    narrow = method.tables(1)
    assert [spec.store is None for spec in narrow] == [True, False, False, False]
    _, layers = build({"method": "hashed_mlp", "hashes": 8, "width": 4})
    stores = [s for s in layers["main"].tables if isinstance(s, HashedMlpStore)]
    assert [s.salt for s in stores] == [salt(name) for name in ("shop", "item", "tags")]
    assert [s.wide for s in layers["first_order"].tables[1:]] == [1, 1, 1]  # type: ignore[union-attr]


def test_a_narrow_table_smaller_than_any_network_stays_plain() -> None:
    spec = (FieldSpec("a", "categorical", num_ids=50),)
    method = HashedMlp(config({"method": "hashed_mlp", "hashes": 64, "width": 2}), spec, DIMS)
    # 65 * 2 + 4 * 6 + 3 * 16 + 20 = 222 < 800, but 65 + 8 + 2 + 10 = 85 > 50
    assert method.tables(16)[0].store is not None
    assert method.tables(1)[0].store is None
    assert method.tables(1)[0].rows == 50


def test_open_ids() -> None:
    spec = (FieldSpec("url", "categorical"), FieldSpec("sex", "categorical", num_ids=3))
    id_map, layers = build({"method": "hashed_mlp", "hashes": 16, "budget": "20KB"}, spec)
    assert sum(layer.memory().stored_bytes for layer in layers.values()) <= 20_000
    ids = torch.tensor([[2**61, 0], [-(2**61), 1], [5, 2]])
    none = torch.zeros(3, 0)
    rows = id_map(Batch(ids, none, [], none.long()))
    vectors = layers["main"](rows)
    assert vectors.shape == (3, 2, 16)
    assert len(vectors[:, 0].detach().unique(dim=0)) == 3
    exact = layers["main"].tables[0].weight
    assert exact is not None
    assert torch.equal(vectors[:, 1], exact)


@pytest.mark.parametrize("budget", [0.5, 0.25, "25KB"])
def test_budget_is_met(budget: str | float) -> None:
    tree = {"method": "hashed_mlp", "hashes": 32}
    id_map, layers = build({**tree, "budget": budget})
    allowed = budget_bytes(budget, FIELDS, DIMS)
    assert sum(layer.memory().stored_bytes for layer in layers.values()) <= allowed
    size = HashedMlp(config({**tree, "budget": budget}), FIELDS, DIMS).size
    _, larger = build({**tree, "width": size + 1})
    assert sum(layer.memory().stored_bytes for layer in larger.values()) > 0.95 * allowed
    assert layers["main"](id_map(encoded(9))).shape == (9, 7, 16)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InputError, match=r"hashed_mlp \(at width 1\) needs at least"):
        build({"method": "hashed_mlp", "budget": 0.01})
    with pytest.raises(ValidationError, match="width or budget, not both"):
        config({"method": "hashed_mlp", "width": 3, "budget": "1MB"})
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        config({"method": "hashed_mlp", "buckets": 1})


def test_learns_nearly_what_a_full_table_learns() -> None:
    network = {"method": "hashed_mlp", "hashes": 32, "width": 20, "hidden_layers": 2}
    full = learned_auc({"method": "full"}, fields)
    assert 0.8 < learned_auc(network, fields) < full


def test_networks_move_at_the_rate_of_the_network() -> None:
    """Also where tables have an optimiser and a rate of their own (Adagrad at .05 diverges)."""
    id_map, layers = build({"method": "hashed_mlp", "width": 4, "hashes": 8})
    rates = {"optimizer": "sgd", "learning_rate": 0.25}
    rates |= {"embedding_optimizer": "adagrad", "embedding_learning_rate": 0.05}
    optimizers = build_optimizers(nn.ModuleDict(layers), TrainConfig.model_validate(rates))
    networks = [s for s in layers["main"].tables if isinstance(s, HashedMlpStore)]
    assert networks
    optimizers.zero_grad()
    layers["main"](id_map(encoded(8))).square().sum().backward()
    before = [network.out.detach().clone() for network in networks]
    gradients = [network.out.grad for network in networks]
    optimizers.step()
    for network, start, gradient in zip(networks, before, gradients, strict=True):
        assert gradient is not None
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(network.out.detach(), start - 0.25 * gradient)
