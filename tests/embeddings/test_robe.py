"""ROBE: its arithmetic in plain integers, how it differs from unified, signs, sizes."""

from __future__ import annotations

import hashlib
from math import sqrt

import pytest
import torch
from embedding_cases import DIMS, FIELDS, build, config, encoded
from pydantic import ValidationError

from recsys.embeddings.budget import budget_bytes
from recsys.embeddings.robe_rows import SignedStore
from recsys.types import Batch, FieldSpec, InputError

WORD = 2**64


def fields(*names: str, n: int | None = None) -> tuple[FieldSpec, ...]:
    return tuple(FieldSpec(name, "categorical", num_ids=n) for name in names)


def batch(ids: torch.Tensor) -> Batch:
    empty = torch.zeros(ids.size(0), 0)
    return Batch(ids, empty, [], empty.long())


def mix(x: int) -> int:
    """splitmix64 in plain integers."""
    z = (x + 0x9E3779B97F4A7C15) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def salt_of(name: str, block: int) -> int:
    digest = hashlib.sha256(f"{name}\x1f{block}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


@pytest.mark.parametrize(("hashes", "chunk"), [(1, 4), (2, 4), (2, 2), (1, 16), (4, 1)])
@pytest.mark.parametrize("sign", [False, True])
def test_places_in_plain_integers(hashes: int, chunk: int, sign: bool) -> None:
    m, ids = 37, [0, 1, 41, 2**40, 2**62]
    tree = {"method": "robe", "rows": m, "hashes": hashes, "chunk": chunk, "sign": sign}
    id_map, _ = build(tree, fields("user", "item"))
    steps = 16 // hashes // chunk
    for c, name in enumerate(("user", "item")):
        expected = []
        for x in ids:
            row = []
            for b in range(hashes):
                word = mix((x + salt_of(name, b)) % WORD)
                negated = sign and word >> 63
                for j in range(steps):
                    row.append((word % 2**63 % m + j) % m + (m if negated else 0))
            expected.append(row)
        assert id_map.field_rows(c, torch.tensor(ids)).tolist() == expected


def test_vectors_are_signed_stretches_of_the_memory() -> None:
    m = 50
    tree = {"method": "robe", "rows": m, "chunk": 4, "sign": True}
    id_map, layers = build(tree, fields("user"))
    ids = torch.arange(300)
    weight = layers["main"].tables[0].weight
    assert weight is not None
    memory = weight.detach().flatten().repeat(2)  # unrolled, so that no stretch wraps
    signs = set()
    vectors = layers["main"](id_map(batch(ids[:, None])))
    for x, vector in zip(ids.tolist(), vectors[:, 0], strict=True):
        word = mix((x + salt_of("user", 0)) % WORD)
        start, sign = 4 * (word % 2**63 % m), -1 if word >> 63 else 1
        signs.add(sign)
        assert torch.equal(vector, sign * memory[start : start + 16])
    assert signs == {-1, 1}


def test_as_many_hashes_as_chunks_is_unified_and_one_hash_is_not() -> None:
    names, ids = ("user", "item"), torch.arange(5000)
    unified, _ = build({"method": "unified", "rows": 500, "lookups": 4}, fields(*names))
    robe, _ = build({"method": "robe", "rows": 500, "hashes": 4}, fields(*names))
    once, _ = build({"method": "robe", "rows": 500, "chunk": 4}, fields(*names))
    for c in range(2):
        assert torch.equal(robe.field_rows(c, ids), unified.field_rows(c, ids))
        rows = once.field_rows(c, ids)
        assert torch.equal(rows[:, 0], unified.field_rows(c, ids)[:, 0])
        assert torch.equal(rows, (rows[:, :1] + torch.arange(4)) % 500)
        assert len(rows.unique(dim=0)) <= 500 < len(robe.field_rows(c, ids).unique(dim=0))


def test_starts_and_signs_are_uniform_and_fields_unrelated() -> None:
    m, ids = 1000, torch.arange(100_000) * 64
    tree = {"method": "robe", "rows": m, "chunk": 4, "sign": True}
    id_map, _ = build(tree, fields("user", "item"))
    user, item = (id_map.field_rows(c, ids)[:, 0] for c in range(2))
    counts = torch.bincount(user % m, minlength=m).double()
    chi2 = float(((counts - 100) ** 2 / 100).sum()) / (m - 1)
    assert 0.8 <= chi2 <= 1.2
    sigma = sqrt(len(ids) / m)
    assert abs(int((user % m == item % m).sum()) - len(ids) / m) <= 5 * sigma
    half = sqrt(len(ids) / 4)
    assert abs(int((user >= m).sum()) - len(ids) / 2) <= 5 * half
    agree = int(((user >= m) == (item >= m)).sum())
    assert abs(agree - len(ids) / 2) <= 5 * half


def test_sign_makes_collisions_cancel() -> None:
    """Two ids at one place have equal or opposite vectors: the mean product is near zero."""
    m = 200
    products = {}
    for sign in (False, True):
        tree = {"method": "robe", "rows": m, "chunk": 16, "sign": sign}
        id_map, layers = build(tree, fields("user"))
        rows = id_map.field_rows(0, torch.arange(4000))[:, 0]
        vectors = layers["main"](id_map(batch(torch.arange(4000)[:, None])))[:, 0].detach()
        first = torch.tensor([int((rows % m == p).nonzero()[0, 0]) for p in range(m)])
        later = torch.tensor([int((rows % m == p).nonzero()[1, 0]) for p in range(m)])
        unit = torch.nn.functional.normalize(vectors, dim=1)
        products[sign] = float((unit[first] * unit[later]).sum(1).mean())
    assert products[False] == pytest.approx(1.0)
    assert abs(products[True]) <= 5 / sqrt(m)


def test_first_order_weights_are_first_chunks() -> None:
    tree = {"method": "robe", "rows": 50, "hashes": 2, "chunk": 4}
    id_map, layers = build(tree, fields("a", "b"))
    rows = id_map(batch(torch.tensor([[3, 4]])))
    weight = layers["first_order"].tables[0].weight
    assert weight is not None
    assert weight.shape == (50, 1)
    expected = torch.stack([weight[rows.ids[0, c]] + weight[rows.ids[0, c + 2]] for c in (0, 4)])
    torch.testing.assert_close(layers["first_order"](rows)[0], expected)


def test_small_fields_keep_their_own_rows() -> None:
    small = (FieldSpec("sex", "categorical", num_ids=3), *fields("url"))
    tree = {"method": "robe", "rows": 100, "chunk": 8, "sign": True}
    id_map, layers = build(tree, small)
    rows = id_map.field_rows(0, torch.arange(3))
    assert rows.tolist() == [[100, 101], [102, 103], [104, 105]]
    assert layers["main"].tables[0].weight.shape == (106, 8)  # type: ignore[union-attr]
    hashed = id_map.field_rows(1, torch.arange(5000))
    assert int((hashed % 106).max()) == 99
    assert int(hashed.max()) == 106 + 99


@pytest.mark.parametrize("budget", ["20KB", "60KB", 0.3])
@pytest.mark.parametrize("sign", [False, True])
def test_budget_is_met(budget: str | float, sign: bool) -> None:
    id_map, layers = build({"method": "robe", "budget": budget, "sign": sign})
    allowed = budget_bytes(budget, FIELDS, DIMS)
    stored = sum(layer.memory().stored_bytes for layer in layers.values())
    assert 0.98 * allowed <= stored <= allowed
    batch = id_map(encoded(20))
    assert layers["main"](batch).shape == (20, 7, 16)


def test_signed_rows_learn_as_plain_ones() -> None:
    """A row and its negation move one and the same row, in opposite directions."""
    store = SignedStore(weight=torch.ones(3, 2), sparse=False)
    store(torch.tensor([0, 3, 3, 4])).sum().backward()
    assert store.weight.grad is not None
    assert store.weight.grad.tolist() == [[-1, -1], [-1, -1], [0, 0]]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="must divide embedding_dim 16"):
        config({"method": "robe", "hashes": 3})
    with pytest.raises(ValidationError, match="chunk 3 must divide the width 8 of a block"):
        config({"method": "robe", "hashes": 2, "chunk": 3})
    with pytest.raises(ValidationError, match="rows or budget, not both"):
        config({"method": "robe", "rows": 30, "budget": "1MB"})
    with pytest.raises(ValidationError, match="must hold a block, 4 chunks"):
        config({"method": "robe", "rows": 3, "chunk": 4})
    with pytest.raises(InputError, match="must divide the width 6"):
        build({"method": "robe"}, fields("a"), {"main": 16, "other": 6})
    with pytest.raises(InputError, match=r"too small: embedding\.method robe needs at least"):
        build({"method": "robe", "budget": "100B"}, fields("a"))


def test_default_chunk() -> None:
    for dim, hashes, steps in (
        (16, 1, 4),
        (10, 1, 2),
        (10, 5, 1),
        (7, 1, 1),
        (16, 4, 1),
        (2, 1, 1),
    ):
        assert config({"method": "robe", "embedding_dim": dim, "hashes": hashes}).steps == steps
