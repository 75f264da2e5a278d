"""DLRM by its definition, with and without numeric fields."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lookup_double import batch, build

from recsys.models import MODELS
from recsys.types import InputError


def dlrm(**settings: Any) -> Any:
    return MODELS["dlrm"].Config(**{"hidden_units": (8,), "bottom_units": (6,), **settings})


def test_dot_reads_the_dense_vector_and_all_pairs() -> None:
    model, data = build(dlrm()).eval(), batch(5)  # fields: 2 numeric, then 3 categorical
    x = model.embedding(data)
    for b in range(5):
        dense = model.bottom[0](torch.cat([x[b, 0], x[b, 1]]).unsqueeze(0))[0]
        assert bool((dense >= 0).all())  # the bottom MLP ends with its activation
        vectors = [x[b, 2], x[b, 3], x[b, 4], dense]
        pairs = [vectors[i] @ vectors[j] for i in range(4) for j in range(i + 1, 4)]
        top = torch.cat([dense, torch.stack(pairs)]).unsqueeze(0)
        torch.testing.assert_close(model(data)[b : b + 1], model.top(top).squeeze(1))


def test_cat_reads_the_vectors_themselves() -> None:
    model, data = build(dlrm(interaction="cat")).eval(), batch(5)
    x = model.embedding(data)
    dense = model.bottom[0](x[:, :2].flatten(1))
    top = torch.cat([x[:, 2], x[:, 3], x[:, 4], dense], 1)
    torch.testing.assert_close(model(data), model.top(top).squeeze(1))


def test_without_numerics_there_is_no_bottom_mlp() -> None:
    sizes = {"numerics": 0, "categoricals": 3}
    data = batch(4, **sizes)
    for interaction, inputs in (("dot", 3), ("cat", 12)):
        model = build(dlrm(interaction=interaction), **sizes).eval()
        assert len(model.bottom) == 0
        assert model.top.layers[0].in_features == inputs
    x = model.embedding(data)
    torch.testing.assert_close(model(data), model.top(x.flatten(1)).squeeze(1))


def test_numerics_alone_still_have_a_dense_vector() -> None:
    sizes = {"numerics": 2, "categoricals": 0}
    model, data = build(dlrm(), **sizes).eval(), batch(3, **sizes)
    dense = model.bottom[0](model.embedding(data).flatten(1))
    torch.testing.assert_close(model(data), model.top(dense).squeeze(1))


def test_one_categorical_field_has_no_pairs() -> None:
    with pytest.raises(InputError, match=r"set model\.interaction to cat"):
        build(dlrm(), numerics=0, categoricals=1)


def test_batch_norm_is_in_both_mlps_and_dropout_in_the_top_one() -> None:
    model = build(dlrm(batch_norm=True, dropout=0.3))
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    norms = {name.split(".")[0] for name, kind in kinds.items() if kind == "BatchNorm"}
    drops = {name.split(".")[0] for name, kind in kinds.items() if kind == "Dropout"}
    assert norms == {"bottom", "top"}
    assert drops == {"top"}
