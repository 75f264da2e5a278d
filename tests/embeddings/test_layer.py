"""What the one layer does with missing numbers and lists, whatever the tables."""

from __future__ import annotations

import pytest
import torch
from embedding_cases import CONFIGS, build, encoded, same

from recsys.types import Batch, FieldSpec


def test_numeric_vectors_by_hand() -> None:
    fields = (FieldSpec("x", "numeric"), FieldSpec("y", "numeric"))
    _, layers = build("full", fields, {"main": 2})
    layer = layers["main"]
    with torch.no_grad():
        layer.numeric.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        layer.numeric.missing.copy_(torch.tensor([[7.0, 8.0], [9.0, 10.0]]))
    floats = torch.tensor([[2.0, torch.nan], [torch.nan, 0.5]])
    out = layer(Batch(torch.zeros(2, 0, dtype=torch.long), floats, [], torch.zeros(2, 0)))
    assert out.tolist() == [[[2.0, 4.0], [9.0, 10.0]], [[7.0, 8.0], [1.5, 2.0]]]
    out.sum().backward()
    assert layer.numeric.weight.grad.tolist() == [[2.0, 2.0], [0.5, 0.5]]  # no NaN
    assert layer.numeric.missing.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert len(layer.tables) == 0


def test_bins_by_hand() -> None:
    fields = (FieldSpec("x", "numeric"), FieldSpec("bins", "numeric", width=2))
    _, layers = build("full", fields, {"main": 1})
    layer = layers["main"]
    with torch.no_grad():
        layer.numeric.weight.copy_(torch.tensor([[1.0], [10.0], [100.0]]))
        layer.numeric.missing.copy_(torch.tensor([[-1.0], [-2.0]]))
    nan = torch.nan
    floats = torch.tensor([[3.0, 1.0, 0.5], [nan, 0.0, 0.0], [0.0, nan, nan]], requires_grad=True)
    out = layer(Batch(torch.zeros(3, 0, dtype=torch.long), floats, [], torch.zeros(3, 0)))
    assert out.squeeze(-1).tolist() == [[3.0, 60.0], [-1.0, 0.0], [0.0, -2.0]]
    out.sum().backward()
    assert torch.isfinite(floats.grad).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_empty_lists_give_zeros_and_touch_nothing(name: str) -> None:
    id_map, layers = build(name, embedding_gradient="dense")
    batch = encoded(6)
    batch.lengths.zero_()
    rows = id_map(batch)
    for layer in layers.values():
        out = layer(rows)
        assert (out[:, 5:] == 0).all()
        out[:, 5:].sum().backward()
        assert all(p.grad is None or (p.grad == 0).all() for p in layer.parameters())
        vectors, mask = layer.sequence(rows, 5)
        assert not mask.any()
        assert (vectors == 0).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_is_harmless(name: str) -> None:
    id_map, layers = build(name)
    batch = encoded(6)
    batch.lengths[:] = torch.tensor([[2, 1]])
    other = encoded(6)._replace(lengths=batch.lengths)
    other.lists[0][:, 2:] = 1999
    other.lists[1][:, 1:] = 0
    same(layers["main"](id_map(batch)), layers["main"](id_map(other)), name)


def test_sum_and_mean_pooling() -> None:
    fields = (
        FieldSpec("a", "bag", num_ids=4, pooling="sum"),
        FieldSpec("b", "bag", num_ids=4, pooling="mean", shares="a"),
    )
    id_map, layers = build("full", fields, {"main": 3})
    lists = [torch.tensor([[1, 2, 2]]), torch.tensor([[1, 2, 2]])]
    empty = torch.zeros(1, 0)
    batch = id_map(Batch(empty.long(), empty, lists, torch.tensor([[3, 2]])))
    table, out = layers["main"].all_vectors(0), layers["main"](batch)
    torch.testing.assert_close(out[0, 0], table[1] + 2 * table[2])
    torch.testing.assert_close(out[0, 1], (table[1] + table[2]) / 2)


def test_a_lone_table_is_looked_up_without_copies() -> None:
    """The output of the usual case is a view of the looked-up rows."""
    fields = (FieldSpec("a", "categorical", num_ids=400), FieldSpec("b", "categorical"))
    id_map, layers = build({"method": "unified", "rows": 100, "exact_below": 0}, fields)
    empty = torch.zeros(3, 0)
    out = layers["main"](id_map(Batch(torch.arange(6).view(3, 2), empty, [], empty.long())))
    assert out._base is not None
    assert out._base.shape == (3, 4, 8)
    assert out.is_contiguous()


def test_plain_tables_add_no_penalty() -> None:
    layer = build("full")[1]["main"]
    assert float(layer.penalty()) == 0.0
