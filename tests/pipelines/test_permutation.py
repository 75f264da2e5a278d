"""`recsys importance` on a model that leans on two columns only, and the rows it looks at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted_xor import Recsys, Trained, is_png, printed

from pipelines import importance
from pipelines.sample import spread_rows
from recsys.training.metrics import auc
from recsys.types import InputError
from serving.parquet import open_source
from serving.scorer import Scorer


def test_useful_columns_rank_first_and_noise_covers_zero(xor: Trained, tmp_path: Path) -> None:
    picture = tmp_path / "bars.png"
    result = importance.run(xor.bundle, str(xor.data), out=[picture])
    table = pq.read_table(xor.data)
    scores = Scorer(xor.bundle).predict(table)
    assert result["auc"] == pytest.approx(auc(table["label"].to_numpy(), scores), abs=1e-6)
    columns = result["columns"]
    assert {row["column"] for row in columns[:2]} == {"b", "e"}
    for row in columns[:2]:
        # Without one of the two there is nothing to know: the AUC falls to a half.
        assert row["auc_drop"] == pytest.approx(result["auc"] - 0.5, abs=0.05)
        assert row["auc_drop_low"] > 0.3
        assert row["logloss_rise_low"] > 0.3
        assert row["features"] == [row["column"]]
    for row in columns[2:]:
        assert row["auc_drop_low"] <= 0 <= row["auc_drop_high"], row
    assert is_png(picture)
    json.dumps(result)
    text = printed(importance.render(result))
    assert "DeLong" in text
    assert f"{columns[0]['auc_drop']:+.5f} [{columns[0]['auc_drop_low']:+.5f}, " in text


def test_importance_on_the_command_line_is_repeatable_in_any_order(
    xor: Trained, tmp_path: Path, recsys: Recsys
) -> None:
    table = pq.read_table(xor.data)
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(pa.array(order)), tmp_path / "other.parquet")
    found = []
    for data in (xor.data, tmp_path / "other.parquet"):
        code, out, _ = recsys("importance", xor.bundle, data, "--repeats", 2, "--json")
        assert code == 0
        found.append(json.loads(out)["columns"])
    assert found[0] == found[1]
    code, out, _ = recsys("importance", xor.bundle, xor.data, "--repeats", 2)
    assert code == 0
    assert "drop in AUC" in out


def test_labels_of_one_kind_or_no_kind_are_refused(xor: Trained, tmp_path: Path) -> None:
    table = pq.read_table(xor.data)
    place = table.schema.get_field_index("label")
    for values, said in (
        ([1] * 1200, "1200 of 1200 rows have label 1"),
        ([0, 1] + [0] * 1198, "1 of 1200 rows have label 1"),
        ([0, 1, 2] + [0] * 1197, "row 2 .*: 2.* is no label"),
    ):
        labels = pa.array(values, pa.int8())
        pq.write_table(table.set_column(place, "label", labels), tmp_path / "bad.parquet")
        with pytest.raises(InputError, match=said):
            importance.run(xor.bundle, str(tmp_path / "bad.parquet"))


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (3, 3), (4, 4), (10, 10), (99, 10)])
def test_rows_are_spread_over_all_files(tmp_path: Path, count: int, expected: int) -> None:
    for part, numbers in enumerate(([0, 1, 2, 3], [4], [5, 6, 7, 8, 9])):
        pq.write_table(pa.table({"x": numbers}), tmp_path / f"{part}.parquet")
    found, values = [], []
    for first, rows, picks in spread_rows(open_source(str(tmp_path)), ["x"], count):
        found += (first + picks).tolist()
        values += rows.take(pa.array(picks))["x"].to_pylist()
    assert found == values
    edges = [place * 10 // expected for place in range(expected + 1)]
    stretches = zip(edges[:-1], edges[1:], found, strict=True)  # one of each
    assert all(first <= row < after for first, after, row in stretches)


def test_spread_rows_do_not_fall_in_step_with_the_log(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1, 0, 0, 0, 0] * 2_000}), tmp_path / "periodic.parquet")
    taken = [
        value
        for _, rows, picks in spread_rows(open_source(str(tmp_path)), ["x"], 2_000)
        for value in rows.take(pa.array(picks))["x"].to_pylist()
    ]
    assert 300 < sum(taken) < 500
