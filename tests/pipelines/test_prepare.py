"""The start of every run: what is shared between runs."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import prepare as module
from recsys.config import AnyRunConfig, RunConfig, SequenceRunConfig, parse_config
from recsys.data.synthetic import write_log
from recsys.features import Features
from recsys.training.progress import SilentReporter
from recsys.types import InputError


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


class Says(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_rows_that_are_trained_on_and_judged_by_are_named(tmp_path: Path) -> None:
    config = one_column(tmp_path)
    train = config.data.train
    said = {}
    for name, valid in {"same": train, "other": str(tmp_path / "log" / "valid.parquet")}.items():
        data = config.data.model_copy(update={"valid": valid})
        reporter = Says()
        changed = config.model_copy(update={"data": data})
        module.prepare(changed, root=".", cache=tmp_path / "cache", reporter=reporter)
        said[name] = [line for line in reporter.lines if "data.train reads too" in line]
    assert said == {"same": [said["same"][0]], "other": []}
    assert said["same"][0].startswith(f"data.valid reads {train}, which")


def test_large_numbers_that_are_not_scaled_are_named(tmp_path: Path) -> None:
    config = one_column(tmp_path)
    log = pq.read_table(config.data.train)
    pq.write_table(log.append_column("when", pa.array([1.7e9] * log.num_rows)), config.data.train)
    for settings, said in (({}, 1), ({"transform": "log1p"}, 0), ({"bins": 4}, 0)):
        tree = config.model_dump(mode="json", exclude_unset=True)
        tree["features"]["when"] = {"type": "numeric", **settings}
        reporter = Says()
        changed = parse_config(tree)
        assert isinstance(changed, RunConfig)
        module.prepare(changed, root=".", cache=tmp_path / "cache", reporter=reporter)
        lines = [line for line in reporter.lines if line.startswith("features.when: values up to")]
        assert len(lines) == said
        assert all("1.7e+09 are not scaled" in line for line in lines)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_targets_that_come_again_are_counted(tmp_path: Path, share: float) -> None:
    """Users hear 0, 1, 2 and then, as valid and test, an old item or a new one."""
    rows = []
    for user in range(40):
        last = (0, 1) if user < 40 * share else (3 + user % 5, 9)
        rows += [(user, item) for item in (0, 1, 2, *last)]
    users, items = zip(*rows, strict=True)
    log = {"user": users, "item": items, "time": range(len(rows))}
    pq.write_table(pa.table({k: list(v) for k, v in log.items()}), tmp_path / "plays.parquet")
    tree = {
        "name": "again",
        "data": {
            "source": str(tmp_path / "plays.parquet"),
            "user": "user",
            "item": "item",
            "timestamp": "time",
            "split": {"method": "leave_one_out"},
        },
        "features": {"history": {"type": "sequence", "max_length": 5}},
        "embedding": {"method": "full", "embedding_dim": 2},
        "model": {"name": "gru4rec"},
    }
    config = parse_config(tree)
    assert isinstance(config, SequenceRunConfig)
    reporter = Says()
    options = {"root": ".", "cache": tmp_path / "cache", "reporter": reporter}
    if share == 1:
        with pytest.raises(InputError, match="every valid target was in its user's history"):
            module.prepare_sequences(config, **options)
    else:
        module.prepare_sequences(config, **options)
        lines = [line for line in reporter.lines if "ranking.filter_seen" in line]
        assert len(lines) == (share > 0)
        assert all(line.startswith("20 of 40 valid targets") for line in lines)
    off = parse_config({**tree, "ranking": {"filter_seen": False}})
    assert isinstance(off, SequenceRunConfig)
    module.prepare_sequences(off, **options)


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
