"""The sequence benchmark without RecBole: turns, its table, and both models on a small log."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import sequences
from benchmarks.turns import Turns


def test_turns_hand_out_what_each_line_asks_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n1\n"))
    seen, said = [], []
    for batch in Turns([[1, 2], [3], [4, 5], [6]], lambda batch: (len(batch), sum(batch))):
        seen.append(batch)
        said.append(capsys.readouterr().out.strip())
    assert seen == [[1, 2], [3], [4, 5]]
    assert said[:2] == ["", ""]  # a turn is reported when its last step is done
    turns = [json.loads(said[2]), json.loads(capsys.readouterr().out)]
    assert [(t["steps"], t["sequences"], t["targets"]) for t in turns] == [(2, 3, 6), (1, 2, 9)]


def record(system: str, seconds: float, cpu: float, targets: int = 40) -> dict:
    return {
        "model": "sasrec",
        "system": system,
        "steps": 2,
        "sequences": 20,
        "targets": targets,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "loss": 1.0,
        "peak_bytes": 3_000_000,
    }


def test_speed_is_relative_to_recbole_at_the_median_turn() -> None:
    records = [
        record("recsys", 2.0, 1.0),
        record("RecBole", 10.0, 8.0, targets=20),
        record("recsys", 4.0, 2.0),
        record("RecBole", 20.0, 8.0, targets=20),
        record("recsys", 90.0, 2.0),  # a disturbed turn moves no median
        record("RecBole", 20.0, 8.0, targets=20),
    ]
    ours, rival = sequences.summarise(records)
    assert (ours["seconds"], ours["cpu_seconds"]) == (2.0, 1.0)  # a step
    assert (ours["sequences_per_seconds"], ours["targets_per_cpu_seconds"]) == (5.0, 20.0)
    assert ours["speed_sequences_per_seconds"] == pytest.approx(5.0)  # 5 against 1
    assert ours["speed_sequences_per_cpu_seconds"] == pytest.approx(4.0)  # 10 against 2.5
    assert ours["speed_targets_per_cpu_seconds"] == pytest.approx(8.0)  # 20 against 2.5
    assert rival["speed_targets_per_seconds"] == 1.0
    assert "5.00x, 4.00x" in sequences.render([ours, rival])
    (alone,) = sequences.summarise(records[:1])
    assert "-, -" in sequences.render([alone])


def test_both_models_train_in_turns_on_a_small_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 30, size=40)  # two are held back, SASRec learns from two
    users = np.repeat(np.arange(40), lengths)
    table = {
        "user": users,
        "item": rng.integers(0, 50, size=len(users)),
        "pos": np.concatenate([np.arange(n) for n in lengths]),
    }
    (tmp_path / "ml-1m").mkdir()
    pq.write_table(pa.table(table), tmp_path / "ml-1m" / "interactions.parquet")
    arguments = ["--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    sizes = ["--steps", "2", "--turns", "1", "--batch-size", "16"]
    assert sequences.main([*arguments, *sizes, "--systems", "recsys"]) == 0
    assert "| bert4rec | recsys |" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "sequences.json").read_text())
    assert [run["model"] for run in result["runs"]] == ["bert4rec", "sasrec"]
    for run in result["runs"]:
        assert run["steps"] == 2
        assert run["targets"] >= run["sequences"] > 0
        assert run["cpu_seconds"] > 0
    for model in ("bert4rec", "sasrec"):
        file = tmp_path / "out" / "sequences" / "recbole" / model / f"{model}.train.inter"
        head, *rows = file.read_text().splitlines()
        assert head == "user_id:token\titem_id_list:token_seq\titem_id:token"
        assert len(rows) == 40
        items = [len(row.split("\t")[1].split()) for row in rows]
        # SASRec has the last item for a target
        kept = lengths - 2 - (model == "sasrec")
        assert sorted(items) == sorted(kept.tolist())


def test_a_system_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert sequences.main(["--systems", "recbol"]) == 2
    assert "recsys, recsys bf16, RecBole" in capsys.readouterr().err
