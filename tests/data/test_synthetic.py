"""Synthetic logs: known truth, planted pairs that no single column shows, exact id counts."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from recsys.data.criteo_shape import column_ids
from recsys.data.synthetic import SIZES, _World, mid_rank_auc, write_criteo_log, write_log


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log"), rows=20_000, eval_rows=10_000, seed=4)


def test_bayes_auc_is_that_of_the_true_probabilities(log):
    labels = pq.read_table(log.test)["label"].to_numpy()
    assert log.bayes_auc == pytest.approx(roc_auc_score(labels, log.test_probability), abs=1e-12)
    assert 0.78 < log.expected_auc < 0.83
    # The standard error of the AUC of 10,000 rows is about .005.
    assert abs(log.bayes_auc - log.expected_auc) < 0.02
    assert abs(labels.mean() - log.test_probability.mean()) < 0.02


def test_mid_rank_auc_by_hand():
    scores = np.array([0.1, 0.4, 0.4, 0.8])
    positive = np.array([0.0, 1.0, 0.0, 1.0])
    # Pairs: .4 beats .1, ties .4; .8 beats both: 3.5 of 4.
    assert mid_rank_auc(scores, positive, 1 - positive) == 3.5 / 4
    # Two rows of probability .9 and .2: right way round .9 * .8, wrong way round .1 * .2.
    p = np.array([0.9, 0.2])
    assert mid_rank_auc(p, p, 1 - p) == pytest.approx(0.72 / 0.74)


def test_no_column_tells_the_truth(log):
    table = pq.read_table(log.test)
    assert not any("prob" in name or "logit" in name for name in table.schema.names)
    labels = table["label"].to_numpy()
    for name in ("price", "age", "dwell", "noise"):
        values = pc.fill_null(table[name], 0.0).to_numpy()
        auc = roc_auc_score(labels, values)
        assert max(auc, 1 - auc) < 0.68
    assert table["price"].null_count > 0
    assert table["dwell"].null_count > 0
    assert pc.min_max(pc.list_value_length(table["history"])).as_py()["min"] == 0


def test_pairs_show_in_no_single_column():
    world = _World(np.random.default_rng(0))
    for (a, b), table in world.pairs.items():
        pa, pb = world.popularity[a], world.popularity[b]
        assert table.shape == (SIZES[a], SIZES[b])
        assert np.abs(pa @ table).max() < 1e-12
        assert np.abs(table @ pb).max() < 1e-12
        assert np.linalg.matrix_rank(table) == 2


def test_same_seed_same_files(tmp_path):
    first, second, other = (
        write_log(tmp_path / name, rows=500, eval_rows=100, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert pq.read_table(first.train) == pq.read_table(second.train)
    assert first.bayes_auc == second.bayes_auc
    assert pq.read_table(first.train) != pq.read_table(other.train)
    times = pq.read_table(first.train)["timestamp"].to_numpy()
    assert (np.diff(times) >= np.timedelta64(0)).all()


def test_criteo_log_has_the_promised_ids(tmp_path):
    path = tmp_path / "criteo.parquet"
    promised = write_criteo_log(path, rows=20_000, ids=40_000, seed=1)
    table = pq.read_table(path)
    assert table.schema.names == [
        "label",
        *(f"I{i}" for i in range(1, 14)),
        *(f"C{i}" for i in range(1, 27)),
    ]
    assert table.num_rows == 20_000
    found = [pc.count_distinct(table[f"C{i}"], mode="only_valid").as_py() for i in range(1, 27)]
    assert found == column_ids(20_000, 40_000)
    assert sum(found) == promised
    assert abs(promised - 40_000) < 100
    assert all(
        pc.all(pc.match_substring_regex(table[f"C{i}"], "^[0-9a-f]{8}$")).as_py() for i in (1, 3)
    )
    assert 0.4 < table["C22"].null_count / 20_000 < 0.8
    assert table["I12"].null_count > 10_000
    assert 0.15 < pc.mean(table["label"]).as_py() < 0.4
