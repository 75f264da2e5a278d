"""The log of many ids: its truth is what it says, and it repeats itself exactly."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.data.planted_ids import COLUMNS, PAIRS, USELESS, write_id_log


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    one = write_id_log(tmp_path / "a", rows=3_000, eval_rows=500, shrink=100, seed=4)
    two = write_id_log(tmp_path / "b", rows=3_000, eval_rows=500, shrink=100, seed=4)
    assert one.train.read_bytes() == two.train.read_bytes()
    assert one.bayes_auc == two.bayes_auc
    other = write_id_log(tmp_path / "c", rows=3_000, eval_rows=500, shrink=100, seed=5)
    assert other.test.read_bytes() != one.test.read_bytes()


def test_useless_values_do_not_move_the_label(tmp_path: Path) -> None:
    log = write_id_log(tmp_path, rows=200_000, eval_rows=10, shrink=1_000)
    assert not log.useful[USELESS].any()
    table = pq.read_table(log.train)
    label = table["label"].to_numpy()
    spread = {}
    for name in ("noise", "big_3"):
        ids = table[name].to_numpy()
        counts = np.bincount(ids, minlength=len(log.useful[name]))
        rates = np.bincount(ids, label, minlength=len(counts)) / np.maximum(counts, 1)
        z = (rates - label.mean()) / np.sqrt(label.mean() * (1 - label.mean()) / counts)
        spread[name] = z
    assert np.abs(spread["noise"]).max() < 4.5
    assert np.std(spread["big_3"][log.useful["big_3"]]) > 5
    assert np.std(spread["big_3"][~log.useful["big_3"]]) < 2


def test_bayes_auc_beats_main_effects(tmp_path: Path) -> None:
    """About .79 at any size; pairs are part of it."""
    log = write_id_log(tmp_path, rows=10, eval_rows=50_000, shrink=100)
    assert log.bayes_auc == pytest.approx(0.79, abs=0.04)
    assert {name for pair in PAIRS for name in pair} < set(COLUMNS)
