"""Every model's bundle scores raw rows as the live model does, in a process without recsys."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.bundle import export_verified
from recsys.models import MODELS
from recsys.testing import world
from recsys.testing.world import shake
from serving.scorer import Scorer


@pytest.mark.parametrize("name", MODELS)
def test_bundle_scores_like_the_live_model(name: str, tmp_path: Path) -> None:
    small = world(tmp_path, model=MODELS[name].example())
    shake(small.model)
    assembly = small.assembly.finalise()
    report = export_verified(
        assembly.model,
        assembly.encoder,
        assembly.id_map,
        small.features.inputs,
        tmp_path / "bundle",
        manifest={},
        features=small.features,
        rows=small.table,
    )
    # the rows, the rows with nulls and with unseen ids put in, and one row of nulls
    assert report.rows == 3 * small.table.num_rows + 1
    assert report.max_abs_diff <= 1e-6
    scores = Scorer(tmp_path / "bundle").predict(small.table.to_pylist()[:3])
    assert scores == pytest.approx(Scorer(tmp_path / "bundle").predict(small.table)[:3], abs=1e-6)
