"""A table method for a budget, from measured runs: which log counts, what wins, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from planted_xor import Recsys

from pipelines import advice
from recsys.config import RunConfig, parse_config
from recsys.data.planted_ids import write_id_log
from recsys.types import InputError

METRICS = {"first": "auc", "second": "logloss", "titles": ["AUC", "logloss"], "more": []}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("ids")
    write_id_log(folder, rows=6_000, eval_rows=1_500, shrink=400)
    tree: dict[str, Any] = {
        "name": "ids",
        "data": {part: str(folder / f"{part}.parquet") for part in ("train", "valid", "test")},
        "features": {name: {"type": "categorical"} for name in ("big_2", "mid_0", "small")},
        "embedding": {"method": "full", "embedding_dim": 8},
        "model": {"name": "fm"},
        "train": {"batch_size": 512, "max_epochs": 1},
        "tracking": {"uri": None},
    }
    tree["data"]["label"] = "label"
    parsed = parse_config(tree)
    assert isinstance(parsed, RunConfig)
    return parsed


def measured(path: Path, name: str, ids: int, aucs: dict[tuple[str, float], float]) -> Path:
    """A file as `recsys compress --json` prints it, with these AUCs by method and budget."""
    rows = [
        {"method": m, "budget": budget, "seeds": [1], "auc": auc, "stored_bytes": 1000 * budget}
        for (m, budget), auc in aucs.items()
    ]
    log = {"name": name, "kind": "clicks", "ids": ids, "full_bytes": 1000, "rows": rows}
    log["metrics"] = METRICS
    path.write_text(json.dumps(log))
    return path


def picked(run: RunConfig, cache: Path, *files: Path, budget: float | str = 0.5) -> dict[str, Any]:
    result = advice.run(run, budgets=[budget], evidence=files, cache=cache)
    return result | result["advice"][0]


def test_the_best_by_more_than_noise_wins(run: RunConfig, tmp_path: Path) -> None:
    aucs = {("full", 1): 0.8, ("full", 0.5): 0.75, ("hash", 0.5): 0.74, ("robe", 0.5): 0.76}
    found = picked(run, tmp_path, measured(tmp_path / "a.json", "a", 1000, aucs))
    assert found["embedding"] == {"method": "robe", "budget": 0.5, "embedding_dim": 8}
    assert (found["value"], found["plain"]) == (0.76, 0.75)
    assert "AUC 0.7600, a plain narrower table 0.7500, the full table 0.8000" in found["reason"]


@pytest.mark.parametrize(
    ("aucs", "method", "why"),
    [
        ({"full": 0.7495, "robe": 0.75, "hash": 0.7}, "full", "robe had 0.7500"),
        (
            {"full": 0.7, "unified:lookups=2": 0.7499, "hash": 0.7495},
            "hash",
            "unified:lookups=2 had 0.7499",
        ),
        (
            {"full": 0.7, "double_hash": 0.7495, "hash": 0.75},
            "hash",
            "no clear difference to double_hash",
        ),
    ],
)
def test_among_equals_the_plain_table_then_the_cheapest(
    run: RunConfig, tmp_path: Path, aucs: dict[str, float], method: str, why: str
) -> None:
    file = measured(tmp_path / "a.json", "a", 1000, {(m, 0.5): auc for m, auc in aucs.items()})
    found = picked(run, tmp_path, file)
    assert found["method"] == method
    assert why in found["reason"]


def test_the_log_of_nearest_size_counts(run: RunConfig, tmp_path: Path) -> None:
    """The run has about 1,200 ids."""
    small = measured(tmp_path / "small.json", "small", 900, {("hash", 0.1): 0.6})
    large = measured(tmp_path / "large.json", "large", 1_000_000, {("robe", 0.1): 0.9})
    found = picked(run, tmp_path, small, large, budget=0.2)
    assert (found["log"], found["method"]) == ("small", "hash")
    assert found["share"] == pytest.approx(0.2, abs=0.01)
    assert 900 < found["ids"] < 1_500


def test_what_took_more_bytes_says_nothing(run: RunConfig, tmp_path: Path) -> None:
    """Of a method's runs the best within the budget counts, whatever budget it was given."""
    aucs = {("hash", 0.1): 0.7, ("robe", 0.1): 0.65, ("hash", 0.5): 0.71, ("robe", 0.5): 0.8}
    file = measured(tmp_path / "a.json", "a", 1000, aucs)
    found = picked(run, tmp_path, file, budget=0.3)
    assert (found["method"], found["value"], found["measured_share"]) == ("hash", 0.7, 0.1)
    found = picked(run, tmp_path, file, budget=0.42)  # .5 is near enough
    assert (found["method"], found["value"]) == ("robe", 0.8)


def test_settings_of_a_method_are_kept(run: RunConfig, tmp_path: Path) -> None:
    file = measured(tmp_path / "a.json", "a", 1000, {("robe:hashes=2", 0.5): 0.7})
    assert picked(run, tmp_path, file)["embedding"] == {
        "method": "robe",
        "budget": 0.5,
        "embedding_dim": 8,
        "hashes": 2,
    }


def test_what_cannot_serve_the_run_is_passed_over(run: RunConfig, tmp_path: Path) -> None:
    """At a twentieth of the bytes there is no plain table, however good it was elsewhere."""
    file = measured(tmp_path / "a.json", "a", 1000, {("full", 0.05): 0.9, ("hash", 0.05): 0.6})
    assert picked(run, tmp_path, file, budget=0.05)["method"] == "hash"
    file = measured(tmp_path / "a.json", "a", 1000, {("full", 0.05): 0.9})
    with pytest.raises(InputError, match=r"nothing measured can meet it: full: .*needs at least"):
        picked(run, tmp_path, file, budget=0.05)


@pytest.mark.parametrize("text", ["", "[1]", '{"rows": []}', '{"name": "a", "rows": [{}]}'])
def test_other_files_are_refused(run: RunConfig, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"--evidence .*a.json: "):
        picked(run, tmp_path, tmp_path / "a.json")


def test_evidence_of_another_kind_says_what_to_do(run: RunConfig, tmp_path: Path) -> None:
    file = measured(tmp_path / "a.json", "a", 1000, {("hash", 0.5): 0.7})
    file.write_text(file.read_text().replace("clicks", "items"))
    with pytest.raises(InputError, match="nothing was measured on clicks; run `recsys compress`"):
        picked(run, tmp_path, file)


def test_open_ids_have_no_full_table(run: RunConfig, tmp_path: Path) -> None:
    tree = run.model_dump(mode="json", exclude_unset=True)
    tree["features"]["mid_0"] = {"type": "categorical", "encoding": "hash"}
    tree["embedding"] = {"method": "unified", "budget": "1MB"}
    file = measured(tmp_path / "a.json", "a", 1000, {("unified", 0.5): 0.7})
    with pytest.raises(InputError, match=r"--auto: features\.mid_0 has open ids"):
        picked(parse_config(tree), tmp_path, file, budget="10KB")  # type: ignore[arg-type]


def test_from_a_pareto_to_advice_on_the_command_line(
    run: RunConfig, tmp_path: Path, recsys: Recsys
) -> None:
    path = tmp_path / "ids.yaml"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_unset=True)))
    pareto = ("compress", path, "--budgets", "1,0.5", "--methods", "full,hash", "--out", tmp_path)
    code, out, err = recsys(*pareto, "--selections", "magnitude", "--json")
    assert code == 0, err
    mine = tmp_path / "mine.json"
    mine.write_text(out)
    code, out, err = recsys("embeddings", path, "--auto", "--budget", "0.5", "--evidence", mine)
    assert code == 0, err
    assert "embedding: {method: " in out
    assert "why: on ids (" in out
    code, out, err = recsys("embeddings", path, "--auto", "--budget", "0.1", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["advice"]
    assert row["reason"].startswith("on frappe-deepfm (5,399 ids")
    assert row["budget"] == 0.1
    assert row["method"] != "full"  # which needs more on this log
