"""Prove a bundle: score raw rows in a process that has torch but not recsys, and compare."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import serving.bundle
from recsys.bundle.graph import ServingGraph
from serving.bundle import read_manifest
from serving.encode import InputField, encode
from serving.parquet import Source

__all__ = [
    "BATCH_ROWS",
    "VerifyError",
    "VerifyReport",
    "answers_elsewhere",
    "expected_scores",
    "verify",
]

BATCH_ROWS = 1024
"""Rows per call on both sides: matrix products may round differently in batches of another size."""

READ_ROWS = 65_536
TIMEOUT_SECONDS = 900
_PROBE = Path(__file__).with_name("probe.py")


class VerifyError(RuntimeError):
    """The bundle does not score as the model it was exported from."""


@dataclass(frozen=True)
class VerifyReport:
    """``max_abs_diff`` over ``rows`` scores, and the ``seconds`` it took (process included)."""

    max_abs_diff: float
    rows: int
    seconds: float

    def proof(self, tolerance: float) -> dict[str, float]:
        """What the manifest records of it."""
        return {"rows": self.rows, "max_abs_diff": self.max_abs_diff, "tolerance": tolerance}


def expected_scores(
    graph: ServingGraph, inputs: Sequence[InputField], rows: pa.Table
) -> np.ndarray:
    """Scores (B,) float32 of raw ``rows`` by the eager modules of this process."""
    parts = [np.empty(0, np.float32)]
    with torch.inference_mode():
        for start in range(0, rows.num_rows, BATCH_ROWS):
            parts.append(graph(*encode(rows.slice(start, BATCH_ROWS), inputs)).numpy())
    return np.concatenate(parts)


def source_scores(graph: ServingGraph, inputs: Sequence[InputField], source: Source) -> np.ndarray:
    """`expected_scores` of all rows of a source, read in batches."""
    columns = list(dict.fromkeys(field.column for field in inputs))
    stream = source.batches(columns, READ_ROWS)
    parts = [expected_scores(graph, inputs, pa.Table.from_batches([batch])) for batch in stream]
    return np.concatenate([np.empty(0, np.float32), *parts])


def verify(
    path: str | Path, rows: pa.Table, expected: np.ndarray, *, tolerance: float = 1e-6
) -> VerifyReport:
    """Score raw ``rows`` with the bundle at ``path`` in a fresh process and compare.

    ``expected``: (B,) probabilities, one for each row. The process cannot import recsys, torchrec,
    fbgemm, mlflow or pydantic; it loads the graph once with nothing but torch imported, then opens
    the bundle with `serving`, and also scores an empty batch. Raises `InputError` for a damaged
    bundle and `VerifyError` naming the worst row and both values if any score differs by more than
    ``tolerance``, is not a number, or if the process fails.
    """
    started = time.perf_counter()
    assert expected.shape == (rows.num_rows,)
    read_manifest(path)
    with tempfile.TemporaryDirectory(prefix="recsys-verify-") as folder:
        got = _scores_elsewhere(Path(path).resolve(), rows, Path(folder))
    if got.shape != expected.shape:
        raise VerifyError(f"{path}: {len(got)} scores for {len(expected)} rows")
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    wrong = ~(difference <= tolerance)  # also where either is NaN
    if np.isnan(expected).any():
        (row,) = rows.slice(int(np.argmax(np.isnan(expected))), 1).to_pylist()
        raise VerifyError(
            f"the model scores some rows as nan, such as {str(row)[:300]}; lower "
            "train.learning_rate, or standardise numeric features"
        )
    if wrong.any():
        worst = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
        raise VerifyError(
            f"{path}: row {worst} scores {got[worst]!r} from the bundle but {expected[worst]!r} "
            f"live, {int(wrong.sum())} of {len(expected)} rows differ by more than {tolerance}; "
            "the bundle was not published"
        )
    return VerifyReport(float(difference.max(initial=0)), len(got), time.perf_counter() - started)


def _scores_elsewhere(bundle: Path, rows: pa.Table, folder: Path) -> np.ndarray:
    answers = answers_elsewhere(bundle, rows, folder)
    return answers.column("score").to_numpy()


def answers_elsewhere(bundle: Path, rows: pa.Table, folder: Path) -> pa.Table:
    """What the bundle adds to ``rows`` when a process of its own without recsys opens it; its
    files go to ``folder``. Raises `VerifyError` if the process fails."""
    raw, answers = folder / "rows.arrow", folder / "answers.arrow"
    with pa.OSFile(str(raw), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    root = Path(serving.bundle.__file__).resolve().parents[1]
    numbers = [str(BATCH_ROWS), str(torch.get_num_threads())]
    command = [sys.executable, "-I", str(_PROBE), str(root), str(bundle), str(raw), str(answers)]
    try:
        done = subprocess.run(
            [*command, *numbers],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise VerifyError(f"{bundle}: no answer after {TIMEOUT_SECONDS} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise VerifyError(f"{bundle}: scoring without recsys failed: {lines[-1]}\n{done.stderr}")
    with pa.OSFile(str(answers), "rb") as file:
        return pa.ipc.open_file(file).read_all()
