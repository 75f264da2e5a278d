"""IPNN by its equation."""

from __future__ import annotations

import torch
from lookup_double import batch, build

from recsys.models import MODELS


def test_logit_by_hand() -> None:
    model = build(MODELS["pnn"].Config(hidden_units=(3,)), numerics=2, categoricals=2).eval()
    data = batch(5, numerics=2, categoricals=2)
    hidden, last = model.mlp.layers[0], model.mlp.layers[-1]
    assert hidden.weight.shape == (3, 4 * 4 + 6)
    vectors = model.embedding(data)  # (B, 4, 4)
    for row in range(5):
        e = [vectors[row, f].tolist() for f in range(4)]
        z = [x for vector in e for x in vector]
        for i in range(4):
            for j in range(i + 1, 4):
                z.append(sum(a * b for a, b in zip(e[i], e[j], strict=True)))
        h = [
            max(0.0, sum(w * x for w, x in zip(weights, z, strict=True)) + bias)
            for weights, bias in zip(hidden.weight.tolist(), hidden.bias.tolist(), strict=True)
        ]
        logit = sum(w * x for w, x in zip(last.weight[0].tolist(), h, strict=True))
        expected = torch.tensor(logit + last.bias.item())
        torch.testing.assert_close(model(data)[row], expected, atol=1e-5, rtol=1e-5)


def test_one_field_has_no_products() -> None:
    model = build(MODELS["pnn"].Config(hidden_units=(3,)), numerics=0, categoricals=1)
    assert model.mlp.layers[0].weight.shape == (3, 4)
    assert model(batch(2, numerics=0, categoricals=1)).shape == (2,)
