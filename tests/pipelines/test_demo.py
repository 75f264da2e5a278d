"""`recsys demo`, the first thing that anybody runs, on a small log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted_xor import Recsys, printed

from pipelines import demo
from recsys.training.tracking.runs import RunReader


def test_the_demo_trains_scores_and_tells(tmp_path: Path, recsys: Recsys) -> None:
    code, out, errors = recsys("demo", "--folder", "d", "--rows", 3000, "--json")
    assert code == 0, errors
    assert "Warning" not in errors
    result = json.loads(out)
    assert 0.7 < result["bayes_auc"] < 0.9
    assert result["runs"].keys() == {"unified", "mixed-dim"}
    for entry in result["runs"].values():
        assert entry["scored"]["rows"] == 750
        assert entry["scored"]["auc"] == pytest.approx(entry["metrics"]["test"]["auc"], abs=1e-6)
        assert entry["verified"]["max_abs_diff"] <= 1e-6
        assert (tmp_path / entry["bundle"] / "manifest.json").exists()
    tracked = RunReader(result["tracking_uri"]).find([], experiment="demo")
    assert len(tracked) == 2
    shown = printed(demo.render(result))
    assert "of Bayes" in shown
    assert "".join(result["ui"].split()) in "".join(shown.split())  # lines may be broken
