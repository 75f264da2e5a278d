"""What a caller of a recommending bundle sees."""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.__main__ import main
from serving.batch import score
from serving.errors import InputError
from serving.scorer import Scorer
from serving.topk import TopK, open_scorer

sys.path.append(str(Path(__file__).parents[1] / "bundle"))
from test_topk_bundle import exported, histories, vocabulary


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("bundles") / "b")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that also recommends what was seen."""
    return exported(tmp_path_factory.mktemp("bundles") / "b", filter_seen=False, kind="int")


ODD = [[], None, ["never seen", None], ["item 3"] * 300, ["item 3", "item 70"], [None]]


def test_histories_of_every_kind(bundle: Path) -> None:
    got = TopK(bundle).recommend([{"history": history} for history in ODD])
    lists = got.items.to_pylist()
    assert all(len(set(row)) == 5 for row in lists)
    assert lists[0] == lists[1]  # null is empty
    assert "item 3" not in lists[3] + lists[4]
    assert "item 70" not in lists[4]
    for row in got.scores.to_pylist():
        assert row == sorted(row, reverse=True)
    assert TopK(bundle).recommend([{}]).items.to_pylist() == lists[:1]


def test_no_rows(bundle: Path) -> None:
    got = TopK(bundle).recommend([])
    assert len(got.items) == len(got.scores) == 0
    assert got.items.type == pa.list_(pa.string())


def test_items_come_back_in_their_own_type(everything: Path) -> None:
    got = TopK(everything).recommend([{"history": [7, 10]}])
    assert got.items.type == pa.list_(pa.int64())
    assert set(got.items.to_pylist()[0]) <= set(vocabulary(80, "int").to_pylist())


def test_more_than_the_catalogue_gives_the_catalogue(bundle: Path, everything: Path) -> None:
    (row,) = TopK(bundle).recommend([{"history": ["item 3", "item 4"]}], k=1000).items.to_pylist()
    assert sorted(row) == sorted(set(vocabulary(80).to_pylist()) - {"item 3", "item 4"})
    (row,) = TopK(everything, k=1000).recommend([{"history": [7]}]).items.to_pylist()
    assert sorted(row) == vocabulary(80, "int").to_pylist()
    # 10^12 places a row would be more than any memory
    assert TopK(everything, k=10**12).recommend([{"history": [7]}]).items.to_pylist() == [row]
    assert TopK(everything).recommend([{"history": [7]}], k=10**12).items.to_pylist() == [row]


def test_a_list_is_the_start_of_a_longer_one_and_batches_change_nothing(bundle: Path) -> None:
    rows = histories(50, 80)
    short = TopK(bundle).recommend(rows, k=3).items.to_pylist()
    long = TopK(bundle, batch_rows=7).recommend(rows, k=30).items.to_pylist()
    assert short == [row[:3] for row in long]


def test_frames_and_batches(bundle: Path) -> None:
    rows = histories(20, 80)
    expected = TopK(bundle).recommend(rows)
    frame = TopK(bundle).recommend(rows.to_pandas())
    assert frame.items.equals(expected.items)
    batch = TopK(bundle).recommend(rows.combine_chunks().to_batches()[0])
    assert batch.scores.equals(expected.scores)


@pytest.mark.parametrize("k", [0, -1, True, 2.5])
def test_bad_k(bundle: Path, k: object) -> None:
    with pytest.raises(InputError, match=r"k is .*; give 1 or more"):
        TopK(bundle).recommend([{}], k=k)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"k is .*; give 1 or more"):
        TopK(bundle, k=k)  # type: ignore[arg-type]


def test_wrong_types_and_wrong_kind(bundle: Path) -> None:
    with pytest.raises(InputError, match="column 'history', row 0: 7 is int"):
        TopK(bundle).recommend([{"history": [7]}])
    with pytest.raises(InputError, match=r"column 'history'.*is missing"):
        TopK(bundle).recommend(pa.table({"user": ["a"]}))
    with pytest.raises(InputError, match=r"answers 'top_k'; open it with serving.topk.TopK"):
        Scorer(bundle)
    assert isinstance(open_scorer(bundle), TopK)


def test_a_parquet_of_histories_gets_lists(bundle: Path, tmp_path: Path) -> None:
    rows = histories(500, 80)
    pq.write_table(rows, tmp_path / "in.parquet", row_group_size=90)
    report = score(
        bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", ["user"], batch_rows=64
    )
    assert report.rows == 500
    out = pq.read_table(tmp_path / "out.parquet")
    expected = TopK(bundle).recommend(rows)
    assert out.column_names == ["user", "items", "scores"]
    assert out.column("user").to_pylist() == rows.column("user").to_pylist()
    assert out.column("items").to_pylist() == expected.items.to_pylist()
    assert np.allclose(
        out.column("scores").combine_chunks().flatten(), expected.scores.flatten(), atol=1e-6
    )


def test_command_line(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(histories(9, 80), tmp_path / "in.parquet")
    words = ["score", str(bundle), str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")]
    assert main([*words, "--k", "2"]) == 0
    assert {len(row) for row in pq.read_table(words[3]).column("items").to_pylist()} == {2}
    pq.write_table(pa.table({"history": [["a"]], "items": [1]}), tmp_path / "in.parquet")
    assert main([*words, "--keep", "items"]) == 2
    assert "--keep items: the output adds a column" in capsys.readouterr().err


def test_k_of_an_open_bundle_is_its_own(bundle: Path, tmp_path: Path) -> None:
    pq.write_table(histories(9, 80), tmp_path / "in.parquet")
    with pytest.raises(InputError, match="k 3: the bundle is open already"):
        score(TopK(bundle, k=2), tmp_path / "in.parquet", tmp_path / "out.parquet", k=3)
