"""Searches for single weights, stopped anywhere and resumed, equal those that never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted
import pytest
import torch
from torch import nn

from recsys.embeddings import build_embeddings, full
from recsys.models import MODELS
from recsys.selection.dnis import DNIS, DNISConfig
from recsys.selection.elements import ElementSelection
from recsys.selection.pep import PEP, PEPConfig
from recsys.settings import TrainConfig
from recsys.training.trainer import Interrupted, Trainer
from recsys.types import FieldSpec

TRAIN = planted.TRAIN.model_copy(update={"batch_size": 250, "max_epochs": 2, "patience": 3})
SPARSE = TrainConfig(
    batch_size=250, max_epochs=2, patience=3, learning_rate=5e-3, embedding_gradient="sparse"
)


def made(
    name: str, train: TrainConfig, out: Path | None
) -> tuple[nn.Module, ElementSelection, Trainer]:
    """DeepFM with what a resume could lose: batch norm, dropout and a selection."""
    torch.manual_seed(5)
    counts = torch.arange(planted.VALUES, 0, -1).numpy()
    fields = tuple(
        FieldSpec(f"f{i}", "categorical", num_ids=planted.VALUES, counts=counts)
        for i in range(planted.FIELDS)
    )
    kind = MODELS["deepfm"]
    deep = kind.Config(hidden_units=(8,), batch_norm=True, dropout=0.3)
    table = full.FullConfig(method="full", embedding_dim=6, init_std=1e-2)
    _, layers = build_embeddings(table, fields, kind.tables(deep, 6), train=train)
    model = kind(deep, fields, layers)
    parts = list(layers.values())
    selection: ElementSelection
    if name == "dnis":
        config = DNISConfig(method="dnis", keep=0.3, search_epochs=2, search_share=0.25)
        selection = DNIS(config, parts, train)
    else:
        selection = PEP(PEPConfig(method="pep", keep=0.3, threshold_step=5.0), parts, train)
    return model, selection, Trainer(model=model, config=train, seed=3, fingerprint="c", out=out)


@pytest.mark.parametrize("train", [TRAIN, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", ["dnis", "pep"])
def test_resume_is_exact(name: str, train: TrainConfig, tmp_path: Path) -> None:
    rows, valid = planted.log(1000, 1), planted.log(500, 2)
    model, selection, trainer = made(name, train, None)
    whole = trainer.fit(rows, valid, selection.phases())
    expected = model.state_dict()
    assert whole.steps > 10
    for stop_at in range(2, whole.steps, whole.steps // 4):
        out = tmp_path / str(stop_at)
        _, half, stopped = made(name, train, out)
        after = stopped._after_step

        def stop(*args: Any, at: int = stop_at, t: Trainer = stopped, then: Any = after) -> None:
            t._stop.asked = t._at.total_steps + 1 == at
            then(*args)

        stopped._after_step = stop  # type: ignore[method-assign]
        with pytest.raises(Interrupted, match=f"step {stop_at};"):
            stopped.fit(rows, valid, half.phases())
        fresh, other, resumed = made(name, train, out)
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.add_(1.0)  # a resume must not depend on what the model held before
        torch.manual_seed(99)
        result = resumed.fit(rows, valid, other.phases())
        assert result.phases == whole.phases
        assert result.steps == whole.steps
        for key, value in expected.items():
            assert torch.equal(value, fresh.state_dict()[key]), (stop_at, key)
        assert other.report() == selection.report()
