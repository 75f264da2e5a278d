"""The scorer on its three kinds of rows."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from doubles import INPUTS, parts, table

from recsys.bundle import ServingGraph, export
from serving.encode import encode
from serving.errors import InputError
from serving.rows import whole_numbers
from serving.scorer import Scorer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(*parts(), INPUTS, tmp_path_factory.mktemp("bundle") / "b", manifest={})


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Scorer:
    return Scorer(bundle)


def expected(rows: pa.Table) -> np.ndarray:
    model, encoder, id_map = parts()
    graph = ServingGraph(encoder=encoder, id_map=id_map, model=model).eval()
    with torch.inference_mode():
        return graph(*encode(rows, INPUTS)).numpy()


def test_every_kind_of_rows_gives_the_same_scores(scorer: Scorer) -> None:
    rows = table(23)
    want = expected(rows)
    frame = rows.to_pandas().astype({"item": "Int64"})
    coded = rows.set_column(2, "user", rows["user"].dictionary_encode())
    shuffled = rows.select(["tags", "item", "key", "user", "price"])
    kinds = [rows, rows.to_batches()[0], frame, rows.to_pylist(), coded, shuffled]
    kinds += [pa.concat_tables([rows[:4], rows[4:9], rows[9:]]), tuple(rows.to_pylist())]
    kinds += [frame.astype({"user": "category"}), frame.set_index("key")]
    for kind in kinds:
        got = scorer.predict(kind)
        assert got.dtype == np.float32
        assert np.array_equal(got, want)


def test_integers_beside_nulls_as_pandas_reads_them(scorer: Scorer) -> None:
    rows = table(23)
    frame = rows.to_pandas()
    assert frame["item"].dtype == np.float64
    assert np.array_equal(scorer.predict(frame), expected(rows))
    with pytest.raises(
        InputError, match="column 'item' is double, but the model was trained on int"
    ):
        scorer.predict(frame.assign(item=frame["item"] + 0.5))


def test_lists_of_integers_beside_nulls_become_whole_again() -> None:
    lists = pa.array([[1.0, None, 3.0], None, [], [float("nan")]])
    assert whole_numbers(lists).to_pylist() == [[1, None, 3], None, [], [None]]
    assert whole_numbers(lists[1:]).to_pylist() == [None, [], [None]]
    chunks = pa.chunked_array([lists, lists[:1]])
    assert whole_numbers(chunks).to_pylist() == [[1, None, 3], None, [], [None], [1, None, 3]]
    for others in ([[0.5]], [[2.0**53]], [["1"]]):
        assert whole_numbers(pa.array(others)).equals(pa.array(others))


def test_polars_frames_score_as_arrow_does(scorer: Scorer) -> None:
    rows = table(20)
    assert np.array_equal(scorer.predict(pl.from_arrow(rows)), scorer.predict(rows))


def test_no_rows(scorer: Scorer) -> None:
    for empty in (table(0), table(3)[:0], [], table(3).to_pandas().astype({"item": "Int64"})[:0]):
        assert scorer.predict(empty).shape == (0,)


def test_a_row_scores_the_same_alone_and_in_any_batch(bundle: Path, scorer: Scorer) -> None:
    rows = table(20)
    alone = [float(scorer.predict([row])[0]) for row in rows.to_pylist()]
    assert np.abs(scorer.predict(rows) - alone).max() < 1e-6
    assert np.abs(Scorer(bundle, batch_rows=7).predict(rows) - alone).max() < 1e-6


def test_missing_keys_are_nulls(scorer: Scorer) -> None:
    null_row = pa.table({f.column: pa.nulls(1) for f in INPUTS})
    assert scorer.predict([{}]) == scorer.predict(null_row)
    assert scorer.predict([{"user": "u", "unknown": object()}]) == scorer.predict([{"user": "u"}])


def test_errors_name_the_column(scorer: Scorer) -> None:
    rows = table(3)
    with pytest.raises(InputError, match=r"rows to score: column 'user' \(text\) is missing"):
        scorer.predict(rows.drop(["user"]))
    with pytest.raises(InputError, match=r"column 'user' is int64, but .* text"):
        scorer.predict(rows.set_column(2, "user", pa.array([1, 2, 3])))
    with pytest.raises(InputError, match=r"column 'user' \(text\) is missing"):
        scorer.predict(rows.to_pandas().drop(columns="user"))
    with pytest.raises(InputError, match="column 'item' is double"):
        scorer.predict(rows.set_column(3, "item", pa.array([1.0, None, 3.0])))
    with pytest.raises(InputError, match="column 'user' of the DataFrame mixes types"):
        scorer.predict(rows.to_pandas().assign(user=pd.Series(["a", 1, None], dtype=object)))
    twice = pd.concat([rows.to_pandas(), rows.to_pandas()[["user"]]], axis=1)
    with pytest.raises(InputError, match="column 'user' of the DataFrame is there 2 times"):
        scorer.predict(twice)
    with pytest.raises(InputError, match="column 'item', row 1: 'x' is str"):
        scorer.predict([{"item": 1}, {"item": "x"}])
    with pytest.raises(InputError, match="cannot score dict; give a pyarrow Table"):
        scorer.predict({"user": "u"})
    with pytest.raises(InputError, match="threads is 0"):
        Scorer(scorer.bundle, 0)


def test_a_good_schema_does_not_let_a_bad_one_through(scorer: Scorer) -> None:
    rows = table(3)
    scorer.predict(rows)
    for _ in range(2):
        with pytest.raises(InputError, match="column 'user' is int64"):
            scorer.predict(rows.set_column(2, "user", pa.array([1, 2, 3])))
    assert len(scorer.predict(rows)) == 3


def test_no_gradients_are_kept(scorer: Scorer) -> None:
    assert torch.is_grad_enabled()
    batch = scorer.encode(table(2))
    assert isinstance(scorer.score(batch), np.ndarray)
    assert torch.is_grad_enabled()


def test_dataframes_need_no_import_of_pandas(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pandas")
    with pytest.raises(InputError, match="cannot score object"):
        scorer.predict(object())
    assert "pandas" not in sys.modules
