"""Magnitude pruning: which rows stay, by hand, and the share that is asked for."""

from __future__ import annotations

from typing import Any

import planted
import pytest
import torch

from recsys.embeddings import build_embeddings, unified
from recsys.selection.magnitude import Magnitude, MagnitudeConfig
from recsys.types import FieldSpec, InputError

PRUNE: dict[str, Any] = {"method": "magnitude", "keep": 0.5}


def test_the_useful_half_stays() -> None:
    run = planted.run(PRUNE).fit()
    assert run.useful_kept() > 0.9
    assert run.useless_closed() > 0.9
    assert run.auc() > planted.run().fit().auc() - 0.002


def selection(by: str, keep: float = 0.5) -> Magnitude:
    """Two layers of four rows whose norms over both are 5, 13, 0 and 1; counts 1, 1, 100, 10."""
    fields = (
        FieldSpec("a", "categorical", num_ids=4, counts=torch.tensor([1, 1, 100, 10]).numpy()),
    )
    config = planted.full.FullConfig(method="full", embedding_dim=2)
    _, layers = build_embeddings(config, fields, {"wide": 2, "one": 1}, train=planted.TRAIN)
    with torch.no_grad():
        layers["wide"].tables[0].weight.copy_(torch.tensor([[3.0, 0], [0, 5], [0, 0], [0.6, 0]]))
        layers["one"].tables[0].weight.copy_(torch.tensor([[4.0], [12], [0], [-0.8]]))
    made = MagnitudeConfig(method="magnitude", keep=keep, by=by)  # type: ignore[arg-type]
    return Magnitude(made, list(layers.values()), planted.TRAIN)


@pytest.mark.parametrize(
    ("by", "scores"),
    [
        ("norm", [5.0, 13.0, 0.0, 1.0]),
        ("frequency", [1.0, 1.0, 100.0, 10.0]),
        ("norm_frequency", [5.0, 13.0, 0.0, 10.0]),
    ],
)
def test_scores_by_hand(by: str, scores: list[float]) -> None:
    made = selection(by)
    assert made.scores()[0].tolist() == pytest.approx(scores)
    expected = sorted(range(4), key=lambda row: -scores[row])[:2]
    assert made.chosen()[0].nonzero().flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75, 1.0])
def test_the_share_is_met_exactly(keep: float) -> None:
    made = selection("frequency", keep)
    made.close(made.chosen())
    assert int(made.kept()[0].sum()) == 4 * keep
    report = made.report()
    assert report["rows"] == 4
    assert report["rows_kept"] == 4 * keep
    assert report["kept_by_field"] == {"a": [4 * keep, 4]}


@pytest.mark.parametrize("restart", ["trained", "initial"])
def test_restart(restart: str) -> None:
    """The second training starts from the trained weights, or from the initial ones, exactly."""
    run = planted.run({**PRUNE, "restart": restart})
    initial = {k: v.clone() for k, v in run.model.state_dict().items()}
    train, retrain = run.selection.phases()
    train.max_epochs, retrain.max_epochs = 2, 0
    run.trainer.fit(planted.log(1000, 1), None, [train, retrain])
    same = [torch.equal(v, initial[k]) for k, v in run.model.state_dict().items() if "mlp" in k]
    assert all(same) == (restart == "initial")


def test_frequencies_of_open_ids_are_refused() -> None:
    fields = (FieldSpec("a", "categorical"),)
    config = unified.UnifiedConfig(method="unified", embedding_dim=4, rows=20)
    _, layers = build_embeddings(config, fields, {"wide": 4}, train=planted.TRAIN)
    settings = MagnitudeConfig(method="magnitude", keep=0.5, by="frequency")
    with pytest.raises(InputError, match=r"features\.a: open ids are not counted"):
        Magnitude(settings, list(layers.values()), planted.TRAIN)


def test_a_model_without_tables_is_refused() -> None:
    fields = (FieldSpec("x", "numeric"),)
    config = planted.full.FullConfig(method="full", embedding_dim=4)
    _, layers = build_embeddings(config, fields, {"wide": 4}, train=planted.TRAIN)
    with pytest.raises(InputError, match="this model has none"):
        Magnitude(MagnitudeConfig(**PRUNE), list(layers.values()), planted.TRAIN)
