"""A tracked AutoInt that learned a planted XOR, and the console script in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from rich.console import Console

FIELDS = ("a", "b", "c", "d", "e", "f")


class Trained(NamedTuple):
    folder: Path
    bundle: Path
    data: Path
    uri: str
    run_id: str


def log(rows: int, seed: int) -> pa.Table:
    """The label is the XOR of two parities; columns a, c, d and f are noise."""
    values = np.random.default_rng(seed).integers(0, 10, (rows, len(FIELDS)))
    label = (values[:, 1] % 2) ^ (values[:, 4] % 2)
    texts = {name: [f"{name}{v}" for v in values[:, i]] for i, name in enumerate(FIELDS)}
    return pa.table({**texts, "label": label.astype(np.int8)})


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "xor",
        "seed": 1,
        "data": {
            "train": str(folder / "train.parquet"),
            "valid": str(folder / "valid.parquet"),
            "label": "label",
        },
        "features": {name: {"type": "categorical"} for name in FIELDS},
        "embedding": {"method": "full", "embedding_dim": 8, "init_std": 0.3},
        "model": {
            "name": "autoint",
            "layers": 2,
            "heads": 2,
            "attention_dim": 16,
            "hidden_units": [],
        },
        "train": {"batch_size": 250, "max_epochs": 6, "learning_rate": 0.01, "patience": 6},
        "tracking": {"uri": None},
        **changes,
    }


class Recsys(Protocol):
    def __call__(self, *words: object) -> tuple[int, str, str]: ...


def printed(rendered: Any) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rendered)
    return console.export_text()


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
