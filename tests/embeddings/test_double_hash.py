"""Several hashed rows per id: sizes, distinct sets of rows, starting variance, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from embedding_cases import build, config
from pydantic import ValidationError

from recsys.embeddings.budget import budget_bytes
from recsys.features.hashing import reduce_ids_np, salt
from recsys.types import Batch, FieldSpec, InputError

LARGE = tuple(
    FieldSpec(name, "categorical", num_ids=n, counts=np.arange(n, 0, -1))
    for name, n in {"user": 20_000, "item": 50_000, "shop": 30}.items()
)


def ids_of(*columns: list[int]) -> Batch:
    ids = torch.tensor(columns).T.contiguous()
    empty = torch.zeros(len(ids), 0)
    return Batch(ids, empty, [], empty.long())


def test_rows_are_those_of_the_salted_hashes() -> None:
    id_map, layers = build({"method": "double_hash", "compression": 0.01, "lookups": 3}, LARGE)
    assert layers["main"].tables[0].weight.shape == (200 + 500 + 30, 16)
    ids = np.arange(20_000)
    expected = [reduce_ids_np(ids, salt("user", t), 200) for t in range(3)]
    assert id_map.field_rows(0, torch.from_numpy(ids)).numpy().tolist() == (
        np.stack(expected, 1).tolist()
    )
    item = id_map.field_rows(1, torch.arange(50_000))
    assert (int(item.min()), int(item.max())) == (200, 699)
    assert id_map.field_rows(2, torch.arange(30)).tolist() == [[700 + i] for i in range(30)]


def test_sum_and_concat_by_hand() -> None:
    batch = ids_of([3, 19_000], [4, 7], [5, 29])
    for operation in ("sum", "concat"):
        tree = {"method": "double_hash", "rows": 100, "operation": operation, "init_std": 0.1}
        id_map, layers = build(tree, LARGE)
        table = layers["main"].tables[0].weight.detach()
        assert table.shape == ((230, 16) if operation == "sum" else (460, 8))
        out = layers["main"](id_map(batch)).detach()
        narrow = layers["first_order"](id_map(batch)).detach()
        first_order = layers["first_order"].tables[0].weight.detach()
        for f in range(3):
            for b in range(2):
                rows = id_map.field_rows(f, batch.ids[b : b + 1, f])[0].tolist()
                assert len(rows) == (1 if operation == "sum" and f == 2 else 2)
                vector = sum(table[r] for r in rows)
                if operation == "concat":
                    vector = torch.cat([table[r] for r in rows])
                torch.testing.assert_close(out[b, f], vector)
                torch.testing.assert_close(narrow[b, f], sum(first_order[r] for r in rows))


def test_two_lookups_tell_ids_apart() -> None:
    """m = 2000 rows: of C(20000, 2) pairs 2 / m^2 share both rows, so about 100 ids do."""
    one = build({"method": "hash", "rows": 2000}, LARGE)[0].field_rows(0, torch.arange(20_000))
    assert len(torch.unique(one)) <= 2000
    two, layers = build({"method": "double_hash", "rows": 2000, "init_std": 0.1}, LARGE)
    sets = two.field_rows(0, torch.arange(20_000)).sort(1).values
    distinct = len(torch.unique(sets, dim=0))
    pairs = 20_000 * 19_999 / 2 * 2 / 2000**2
    assert abs(20_000 - distinct - pairs) < 5 * pairs**0.5
    vectors = layers["main"].all_vectors(0)
    assert len(torch.unique(vectors, dim=0)) == pytest.approx(distinct, abs=2)
    chunks = build({"method": "double_hash", "rows": 2000, "operation": "concat"}, LARGE)[0]
    rows = chunks.field_rows(0, torch.arange(20_000))  # of 4000 chunks: 12.5 pairs expected
    assert 20_000 - len(torch.unique(rows, dim=0)) < 31


@pytest.mark.parametrize("operation", ["sum", "concat"])
def test_vectors_start_with_the_same_variance(operation: str) -> None:
    tree = {"method": "double_hash", "rows": 1500, "operation": operation, "init_std": 0.5}
    torch.manual_seed(3)
    _, layers = build(tree | {"lookups": 4, "exact_below": 1500}, LARGE)
    for layer in layers.values():
        assert float(layer.all_vectors(1).detach().std()) == pytest.approx(0.5, rel=0.06)
    small = (FieldSpec("n", "categorical", num_ids=3000),)
    _, layers = build(tree | {"lookups": 4, "exact_below": 3000}, small)
    for layer in layers.values():
        assert float(layer.all_vectors(0).detach().std()) == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize("operation", ["sum", "concat"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.05])
def test_a_budget_is_met_within_a_thousandth(operation: str, share: float) -> None:
    fields = (FieldSpec("user", "categorical", num_ids=300_000), *LARGE[1:])
    tree = {"method": "double_hash", "operation": operation, "budget": share}
    dims = {"main": 16}
    _, layers = build(tree, fields, dims)
    limit = budget_bytes(share, fields, dims)
    assert 0.999 * limit <= layers["main"].memory().stored_bytes <= limit


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        config({"method": "double_hash", "lookups": 1})
    with pytest.raises(ValidationError, match="lookups 3 must divide embedding_dim 16"):
        config({"method": "double_hash", "lookups": 3, "operation": "concat"})
    with pytest.raises(ValidationError, match="one of rows, compression and budget"):
        config({"method": "double_hash", "rows": 3, "budget": "1MB"})
    tree = {"method": "double_hash", "lookups": 4, "operation": "concat"}
    with pytest.raises(InputError, match=r"embedding\.lookups 4: must divide the width 6"):
        build(tree, LARGE, {"main": 16, "other": 6})
    with pytest.raises(InputError, match=r"embedding\.method double_hash needs at least"):
        build({"method": "double_hash", "budget": "2KB"}, LARGE)
    with pytest.raises(InputError, match=r"method double_hash cannot size a field with open ids"):
        build({"method": "double_hash"}, (FieldSpec("url", "categorical"),))
