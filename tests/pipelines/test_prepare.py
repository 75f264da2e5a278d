"""The start of every run: what is shared between runs."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import prepare as module
from recsys.config import AnyRunConfig, parse_config
from recsys.data.synthetic import write_log
from recsys.features import Features
from recsys.training.progress import SilentReporter


def one_column(tmp_path: Path) -> AnyRunConfig:
    log = write_log(tmp_path / "log", rows=400, eval_rows=100, seed=1)
    return parse_config(
        {
            "name": "shared",
            "data": {"train": str(log.train), "label": "label"},
            "features": {"site": {"type": "categorical"}},
            "embedding": {"method": "full", "embedding_dim": 2},
            "model": {"name": "lr"},
        }
    )


def test_a_damaged_cache_of_features_is_made_anew(tmp_path: Path) -> None:
    config, cache = one_column(tmp_path), tmp_path / "cache"

    def prints() -> str:
        prepared = module.prepare(config, root=".", cache=cache, reporter=SilentReporter())
        return prepared.features.fingerprint

    first = prints()
    for damage in (Path.unlink, lambda path: path.write_bytes(b"")):
        (file,) = cache.glob("features-*/features.safetensors")
        damage(file)
        assert prints() == first
        assert file.stat().st_size > 0


def test_features_of_one_value_are_named(tmp_path: Path) -> None:
    rows = {
        "label": [0, 1, 0, 1],
        "one": ["a"] * 4,
        "two": ["a", "a", "b", "b"],
        "maybe": ["a", "a", None, None],
        "none": pa.nulls(4, pa.string()),
        "flat": [1.5, 1.5, None, 1.5],
        "price": [1.0, 2.0, 3.0, 4.0],
    }
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    numeric = {"type": "numeric", "normalise": "standard"}
    kinds = {"flat": numeric, "price": numeric}
    names = ("one", "two", "maybe", "none", "flat", "price")
    config = parse_config(
        {
            "name": "x",
            "data": {"train": str(tmp_path / "x.parquet"), "label": "label"},
            "features": {name: kinds.get(name, {"type": "categorical"}) for name in names},
            "embedding": {"method": "full", "embedding_dim": 2},
            "model": {"name": "lr"},
        }
    )
    told: list[str] = []

    class Telling(SilentReporter):
        def say(self, line: str) -> None:
            told.append(line)

    for _ in range(2):  # fitted, and read back
        module.prepare(config, root=".", cache=tmp_path / "cache", reporter=Telling())
    assert told == ["features one, none, flat: no more than one value in train"] * 2


def test_two_runs_may_fit_the_same_features_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = one_column(tmp_path)
    both_have_fitted = threading.Barrier(2, timeout=60)
    save = Features.save

    def save_together(self: Features, folder: str | Path) -> None:
        save(self, folder)
        both_have_fitted.wait()

    monkeypatch.setattr(Features, "save", save_together)
    done: list[str] = []

    def run() -> None:
        prepared = module.prepare(
            config, root=".", cache=tmp_path / "cache", reporter=SilentReporter()
        )
        done.append(prepared.features.fingerprint)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert done[0] == done[1]
