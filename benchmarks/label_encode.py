"""The encoding that DeepCTR-Torch and torch-rechub leave to their users, as their examples do it.

Both libraries take arrays of ids from 0; their documentation builds them with pandas and
scikit-learn: ``fillna``, one `LabelEncoder` per text column over all rows, one scaler for the
numeric columns. That is counted as their ingestion.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.preprocessing import LabelEncoder, StandardScaler

from benchmarks.harness import LABEL, Job, columns, num_rows, report, timed

FILE = "encoded.npz"
SIZES = "sizes.json"


def encode(log: Path, out: Path) -> dict[str, int]:
    """Raw Parquet -> one ``.npz`` of int32 ids, float32 numerics and labels; ids per column."""
    numeric, text = columns(log)
    frame = pd.read_parquet(log)
    frame[text] = frame[text].fillna("-1")
    frame[numeric] = frame[numeric].fillna(0)
    encoded = {LABEL: frame[LABEL].to_numpy(np.float32)}
    scaled = StandardScaler().fit_transform(frame[numeric]).astype(np.float32)
    encoded.update({name: scaled[:, i] for i, name in enumerate(numeric)})
    counts = {}
    for name in text:
        encoder = LabelEncoder()
        encoded[name] = encoder.fit_transform(frame[name]).astype(np.int32)
        counts[name] = len(encoder.classes_)
    np.savez(out, **encoded)
    return counts


def ingest(job: Job, *, system: str, packages: tuple[str, ...]) -> None:
    """The ingest stage of a library without one."""
    counts, seconds = timed(lambda: encode(job.log, job.work / FILE))
    (job.work / SIZES).write_text(json.dumps(counts), encoding="utf-8")
    report(
        job,
        system=system,
        rows=num_rows(job.log),
        seconds=seconds,
        packages=("pandas", "scikit-learn", *packages),
        ids=sum(counts.values()),
        encoder="pandas + sklearn LabelEncoder",
    )


def load(job: Job, rows: int | None = None) -> dict[str, np.ndarray]:
    """The encoded columns, (rows,) each: the first ``rows`` of them or all."""
    with np.load(job.work / FILE) as file:
        return {name: file[name][:rows].copy() for name in file.files}


def sizes(job: Job) -> dict[str, int]:
    """Ids per text column."""
    return json.loads((job.work / SIZES).read_text(encoding="utf-8"))
