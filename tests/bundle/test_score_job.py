"""Parquet to Parquet: every row once, in order, whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from doubles import INPUTS, parts, table

from recsys.bundle import export
from serving import batch as module
from serving.__main__ import main
from serving.batch import score
from serving.errors import InputError
from serving.scorer import Scorer

ROOT = Path(module.__file__).parents[1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(*parts(), INPUTS, tmp_path_factory.mktemp("bundle") / "b", manifest={})


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    pq.write_table(table(1000), path, row_group_size=130)
    return path


def test_rows_keep_their_order_and_columns(
    bundle: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP_ROWS", 300)
    out = tmp_path / "scores.parquet"
    report = score(bundle, str(rows_file), out, keep=["key", "user", "key"], batch_rows=64)
    scored = pq.read_table(out)
    assert report.rows == 1000
    assert report.seconds > 0
    assert scored.schema.names == ["key", "user", "score"]
    assert scored.schema.field("score").type == pa.float32()
    assert scored["key"].to_pylist() == [f"k{i}" for i in range(1000)]
    assert scored["user"].to_pylist() == table(1000)["user"].to_pylist()
    want = Scorer(bundle).predict(table(1000))
    assert np.abs(scored["score"].to_numpy() - want).max() < 1e-6
    assert pq.read_metadata(out).num_row_groups == 4  # 3 full groups, then the rest


def test_threads_change_neither_order_nor_scores(
    bundle: Path, rows_file: Path, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    files = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            files.append(tmp_path / f"{threads}.parquet")
            score(bundle, str(rows_file), files[-1], keep=["key"], batch_rows=17)
            assert torch.get_num_threads() == threads
            with pytest.raises(InputError, match="row group 2"):
                score(bundle, Broken(), tmp_path / "broken.parquet")
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert pq.read_table(files[0]).equals(pq.read_table(files[1]))


def test_command_line(
    bundle: Path, rows_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.parquet"
    assert main(["score", str(bundle), str(rows_file), str(out), "--keep", "key, item"]) == 0
    assert pq.read_table(out).schema.names == ["key", "item", "score"]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{out}: 1,000 rows in ")  # no progress line: no terminal


def test_scores_do_not_land_among_the_rows(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "log" / "deep").mkdir(parents=True)
    pq.write_table(table(5), tmp_path / "log" / "x.parquet")
    for out in ("log/s.parquet", "log/deep/s.parquet"):
        with pytest.raises(InputError, match="lies in the input folder log, and would be read"):
            score(bundle, "log", tmp_path / out, root=tmp_path)
    score(bundle, "log/x.parquet", tmp_path / "log" / "s.parquet", root=tmp_path)  # as was asked


def test_command_line_threads(bundle: Path, rows_file: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    before = torch.get_num_threads()
    try:
        for threads, out in enumerate(outs, 1):
            job = ["score", str(bundle), str(rows_file), str(out), "--threads", str(threads)]
            assert main(job) == 0
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert pq.read_table(outs[0]).equals(pq.read_table(outs[1]))


def test_text_in_folder_names_may_be_whole_numbers(bundle: Path, tmp_path: Path) -> None:
    """``user=07``: what the bundle knows as text stays text, whatever other folders there are."""
    rows = table(6)
    for user in ("07", "8"):
        folder = tmp_path / "log" / f"user={user}"
        folder.mkdir(parents=True)
        pq.write_table(rows.drop_columns(["user"]), folder / "x.parquet")
    score(bundle, str(tmp_path / "log"), tmp_path / "s.parquet", keep=["user"])
    scored = pq.read_table(tmp_path / "s.parquet")
    assert scored["user"].to_pylist() == ["07"] * 6 + ["8"] * 6
    place = rows.schema.get_field_index("user")
    for start, user in ((0, "07"), (6, "8")):
        want = Scorer(bundle).predict(rows.set_column(place, "user", pa.array([user] * 6)))
        assert np.abs(scored["score"].to_numpy()[start : start + 6] - want).max() < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle": "nowhere"}, "no such bundle folder"),
        ({"source": "nowhere.parquet"}, "nowhere.parquet"),
        ({"keep": "score"}, "--keep score: the output adds a column of that name"),
        ({"keep": "kye"}, "column 'kye' of --keep is missing"),
        ({"out": "SAME"}, "is an input file; scores would overwrite it"),
        ({"out": "LINK"}, "is an input file; scores would overwrite it"),
        ({"out": "FOLDER"}, "is a folder"),
        ({"source": "OTHER"}, "column 'user' is int64, but the model was trained on text"),
    ],
    ids=lambda v: str(v)[:24],
)
def test_bad_input_is_one_line_and_exit_code_2(
    bundle: Path,
    rows_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    message: str,
) -> None:
    link = tmp_path / "link.parquet"
    os.link(rows_file, link)
    other = tmp_path / "other.parquet"
    pq.write_table(table(5).set_column(2, "user", pa.array(range(5))), other)
    names = {"SAME": rows_file, "LINK": link, "FOLDER": tmp_path, "OTHER": other}
    given = {"bundle": str(bundle), "source": str(rows_file), "out": str(tmp_path / "o.parquet")}
    given |= {key: str(names.get(value, value)) for key, value in change.items()}
    before = rows_file.read_bytes()
    arguments = ["score", given["bundle"], given["source"], given["out"]]
    assert main([*arguments, "--keep", given.get("keep", "key")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert rows_file.read_bytes() == before
    assert not (tmp_path / "o.parquet").exists()


def test_a_full_disk_is_exit_code_1(
    bundle: Path,
    rows_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    assert main(["score", str(bundle), str(rows_file), str(tmp_path / "o.parquet")]) == 1
    assert "failed: " in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.parquet"]


class Broken:
    """A source whose third batch fails, as a damaged file does."""

    files = ("broken.parquet",)
    schema = table(1).schema
    num_rows = 100
    fingerprint = "0"

    def batches(
        self, columns: Sequence[str], batch_rows: int = 65536, dictionary: Sequence[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        for start in (0, 10):
            yield table(20).slice(start, 10).select(list(columns)).to_batches()[0]
        raise InputError("broken.parquet: row group 2 cannot be read")

    def place(self, row: int) -> str:
        return str(row)


def test_a_failure_midway_leaves_nothing_and_keeps_what_was_there(
    bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.parquet"
    for before in (None, b"older scores"):
        if before:
            out.write_bytes(before)
        with pytest.raises(InputError, match="row group 2"):
            score(bundle, Broken(), out)
        assert [p.name for p in tmp_path.iterdir()] == (["o.parquet"] if before else [])
        assert not before or out.read_bytes() == before


def test_no_rows_give_a_file_with_no_rows(bundle: Path, tmp_path: Path) -> None:
    pq.write_table(table(0), tmp_path / "empty.parquet")
    report = score(bundle, str(tmp_path / "empty.parquet"), tmp_path / "o.parquet", keep=["key"])
    assert report.rows == 0
    scored = pq.read_table(tmp_path / "o.parquet")
    assert scored.num_rows == 0
    assert scored.schema.names == ["key", "score"]


def test_a_killed_job_leaves_no_file(bundle: Path, rows_file: Path, tmp_path: Path) -> None:
    slow = (
        "import sys, time, serving.scorer as s\n"
        "honest = s.Scorer.score\n"
        "def score(self, batch):\n"
        "    sys.stdout.write('batch\\n')  # whole, from any thread\n"
        "    sys.stdout.flush()\n"
        "    time.sleep(0.2)\n"
        "    return honest(self, batch)\n"
        "s.Scorer.score = score\n"
        "from serving.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    out = tmp_path / "o.parquet"
    command = ["score", str(bundle), str(rows_file), str(out), "--batch-rows", "50"]
    job = subprocess.Popen(
        [sys.executable, "-c", slow, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    with job.stdout:
        for _ in range(3):  # of 20 batches
            assert job.stdout.readline() == "batch\n"
        hidden = [p for p in tmp_path.iterdir() if p != rows_file]
        job.send_signal(signal.SIGKILL)
        job.wait(10)
    assert len(hidden) == 1  # it was being written, under another name
    assert not out.exists()


def test_progress_draws_at_most_five_times_a_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with module._Line(1000, show=True) as line:
        for step in range(1, 11):
            clock[0] += 0.11
            line.update(step * 100)
    drawn = capsys.readouterr().err
    assert drawn.count("\r") == 6
    assert drawn.endswith("1,000 of 1,000 rows (100%), 909 rows/s\n")
