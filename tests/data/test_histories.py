"""Histories hold what serving would have known: a law, an oracle, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import histories as pipeline
from recsys.data.history_spec import parse_history
from recsys.types import InputError
from serving.parquet import open_source

SPLITS = ("train", "valid", "test")
Log = dict[str, list[Any]]


def log(seed: int, rows: int = 40) -> Log:
    """Few users, items and instants: many ties, and rows of train later than those of valid."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, 4, rows).tolist()
    return {
        "user": [None if rng.random() < 0.05 else f"u{u}" for u in users],
        "item": rng.integers(0, 6, rows).tolist(),
        "time": rng.integers(0, 8, rows).tolist(),
        "rating": rng.integers(1, 6, rows).astype(float).tolist(),
    }


def write(folder: Path, logs: dict[str, Log]) -> dict[str, str]:
    types = {"user": pa.string(), "item": pa.int64(), "time": pa.int64(), "rating": pa.float64()}
    paths = {}
    for name, columns in logs.items():
        table = pa.table({key: pa.array(values, types[key]) for key, values in columns.items()})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=7)
        paths[name] = f"{name}.parquet"
    return paths


def made(folder: Path, logs: dict[str, Log], **keys: Any) -> dict[str, pa.Table]:
    options = {"user": "user", "item": "item", "time_column": "time", "length": 5} | keys
    paths = write(folder, logs)
    pipeline.run(paths, folder / "out", root=str(folder), **options)
    return {name: pq.read_table(folder / "out" / f"{name}.parquet") for name in logs}


def oracle(train: Log, row: dict[str, Any], length: int, least: float = 0.0) -> list[int]:
    """The rule in its plainest words."""
    events = sorted(
        (train["time"][i], i)
        for i in range(len(train["user"]))
        if row["user"] is not None
        and train["user"][i] == row["user"]
        and train["time"][i] < row["time"]
        and train["rating"][i] >= least
    )
    return [train["item"][i] for _, i in events][-length:]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6), length=st.integers(1, 6))
def test_rule(seed: int, length: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rule")
    logs = {name: log(seed + i) for i, name in enumerate(SPLITS)}
    out = made(folder, logs, length=length, histories=("seen", "liked: rating >= 4"))
    for name, table in out.items():
        assert table.num_rows == 40
        for row in table.to_pylist():
            assert row["seen"] == oracle(logs["train"], row, length)
            assert row["liked"] == oracle(logs["train"], row, length, least=4)
        for key, values in logs[name].items():  # the columns and the order stay
            assert table[key].to_pylist() == values


def test_no_leak(tmp_path: Path) -> None:
    """Neither valid nor test nor the future nor the row itself changes a history."""
    logs = {name: log(seed) for seed, name in enumerate(SPLITS)}
    before = {n: t["history"].to_pylist() for n, t in made(tmp_path, logs).items()}
    for name in ("valid", "test"):
        changed = {**logs, name: {k: v[:3] for k, v in log(99).items()}}
        after = made(tmp_path, changed)
        for other in SPLITS:
            if other != name:
                assert after[other]["history"].to_pylist() == before[other]
    for instant in range(8):
        keep = [i for i in range(40) if logs["train"]["time"][i] < instant]
        shorter = {k: [v[i] for i in keep] for k, v in logs["train"].items()}
        after = made(tmp_path, {**logs, "train": shorter}) if keep else {}
        for name, table in after.items():
            rows = keep if name == "train" else range(40)
            for place, i in enumerate(rows):
                if logs[name]["time"][i] <= instant:
                    assert table["history"][place].as_py() == before[name][i]


def test_a_row_never_sees_itself_or_its_instant(tmp_path: Path) -> None:
    train: Log = {
        "user": ["a"] * 4,
        "item": [10, 11, 12, 13],
        "time": [5, 5, 6, 4],
        "rating": [5.0] * 4,
    }
    valid: Log = {"user": ["a", "a", "b"], "item": [10] * 3, "time": [6, 7, 7], "rating": [1.0] * 3}
    out = made(tmp_path, {"train": train, "valid": valid})
    assert out["train"]["history"].to_pylist() == [[13], [13], [13, 10, 11], []]
    assert out["valid"]["history"].to_pylist() == [[13, 10, 11], [13, 10, 11, 12], []]


def test_attributes_from_a_table_of_items(tmp_path: Path) -> None:
    train: Log = {"user": ["a"] * 3, "item": [3, 1, 9], "time": [1, 2, 3], "rating": [5.0] * 3}
    items = {"item": [1, 2, 3], "genre": ["one", None, "three"]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    out = made(tmp_path, {"train": train}, attributes=("genre",), items="items.parquet")["train"]
    assert out["genre"].to_pylist() == ["three", "one", None]
    assert out["history_genre"].to_pylist() == [[], ["three"], ["three", "one"]]
    assert out.schema.field("history_genre").type == pa.list_(pa.string())


def test_what_only_events_have_comes_from_train(tmp_path: Path) -> None:
    """Beside attributes of a table of items, and where other splits do not have the column."""
    train = pa.table(
        {"user": ["a"] * 3, "item": [3, 1, 3], "time": [1, 2, 3], "rated": ["5.0", None, "2.5"]}
    )
    pq.write_table(train, tmp_path / "train.parquet")
    asked = pa.table({"user": ["a", "b"], "item": [1, 1], "time": [3, 9]})
    pq.write_table(asked, tmp_path / "test.parquet")
    items = {"item": [1, 3], "genre": ["one", "three"]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    keys: dict[str, Any] = {"user": "user", "item": "item", "time_column": "time"}
    keys |= {"attributes": ("genre",), "items": "items.parquet", "of_event": ("rated",)}
    paths = {"train": "train.parquet", "test": "test.parquet"}
    pipeline.run(paths, tmp_path / "out", root=str(tmp_path), **keys)
    out = {name: pq.read_table(tmp_path / "out" / f"{name}.parquet") for name in paths}
    assert out["train"]["history_rated"].to_pylist() == [[], ["5.0"], ["5.0", None]]
    assert out["test"]["history_rated"].to_pylist() == [["5.0", None], []]
    assert out["test"]["history_genre"].to_pylist() == [["three", "one"], []]
    assert "rated" not in out["test"].schema.names


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"of_event": ("rating",)}, "--of-event rating: is double, and a history holds ids"),
        ({"of_event": ("item",)}, "column 'item' is there more than once"),
        ({"of_event": ("rating",), "attributes": ("rating",)}, "'rating' is there more than once"),
        ({"of_event": ("stars",)}, "column 'stars' is missing|'stars'"),
    ],
)
def test_what_events_cannot_have(tmp_path: Path, keys: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(tmp_path, {"train": log(1)}, **keys)


def test_text_from_files_with_other_values(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number, items in enumerate((["x", "y", "x"], ["z", None, "y"])):
        rows = {
            "user": ["a"] * 3,
            "item": pa.array(items, pa.string()),
            "time": [3 * number + i for i in range(3)],
            "tag": pa.array([None if i == "x" else f"of {i}" for i in items], pa.string()),
        }
        pq.write_table(pa.table(rows), tmp_path / "train" / f"{number}.parquet")
    pipeline.run(
        {"train": "train"},
        tmp_path / "out",
        root=str(tmp_path),
        user="user",
        item="item",
        time_column="time",
        length=5,
        attributes=("tag",),
    )
    out = pq.read_table(tmp_path / "out" / "train.parquet")
    assert out["history"].to_pylist()[-1] == ["x", "y", "x", "z"]
    assert out["history_tag"].to_pylist()[-1] == [None, "of y", None, "of z"]
    assert out.schema.field("history").type == pa.list_(pa.string())


def test_the_latest_history_of_every_user(tmp_path: Path) -> None:
    """The very last event is in it, which no row of train can see."""
    train = log(5)
    write(tmp_path, {"train": train})
    options = {"user": "user", "item": "item", "time_column": "time", "length": 4}
    result = pipeline.run(
        {"train": "train.parquet"},
        tmp_path / "out",
        root=str(tmp_path),
        histories=("seen", "liked: rating == 4"),
        latest=True,
        **options,  # type: ignore[arg-type]
    )
    rows = pq.read_table(tmp_path / "out" / "latest.parquet").to_pylist()
    assert [row["user"] for row in rows] == list(dict.fromkeys(u for u in train["user"] if u))
    assert result["rows"]["latest"] == len(rows)
    for row in rows:
        later = {"user": row["user"], "time": 99}
        assert row["seen"] == oracle(train, later, 4)
        keep = [place for place, rating in enumerate(train["rating"]) if rating == 4]
        fours = {name: [column[place] for place in keep] for name, column in train.items()}
        assert row["liked"] == oracle(fours, later, 4)
    shares = result["histories"]["latest"]["seen"]
    assert shares["mean_length"] == np.mean([len(row["seen"]) for row in rows])


def test_two_histories_never_share_a_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two histories would write one column"):
        made(tmp_path, {"train": log(1)}, histories=("a", "a_rating"), attributes=("rating",))


def test_attributes_without_a_table_of_items_must_be_in_every_split(tmp_path: Path) -> None:
    logs = {"train": log(1), "valid": log(2)}
    paths = write(tmp_path, logs)
    train = pq.read_table(tmp_path / "train.parquet")
    pq.write_table(train.append_column("genre", [["g"] * 40]), tmp_path / "train.parquet")
    keys = {"user": "user", "item": "item", "time_column": "time", "attributes": ("genre",)}
    with pytest.raises(InputError, match=r"valid.parquet: column 'genre' is missing; add it"):
        pipeline.run(paths, tmp_path / "out", root=str(tmp_path), **keys)


def test_items_must_be_unique_and_of_the_type_of_the_log(tmp_path: Path) -> None:
    logs = {"train": log(1)}
    keys = {"attributes": ("genre",), "items": "items.parquet"}
    pq.write_table(pa.table({"item": [1, 1], "genre": ["a", "b"]}), tmp_path / "items.parquet")
    with pytest.raises(InputError, match="1 is there twice; keep one row per item"):
        made(tmp_path, logs, **keys)
    pq.write_table(pa.table({"item": ["1"], "genre": ["a"]}), tmp_path / "items.parquet")
    with pytest.raises(InputError, match="cast one to the other"):
        made(tmp_path, logs, **keys)


def test_refusals(tmp_path: Path) -> None:
    logs = {"train": log(1)}
    with pytest.raises(InputError, match="'item' is there already"):
        made(tmp_path, logs, histories=("item",))
    with pytest.raises(InputError, match="names must differ"):
        made(tmp_path, logs, histories=("a", "a"))
    with pytest.raises(InputError, match="'x' is no value of column 'rating'"):
        made(tmp_path, logs, histories=("a: rating >= x",))
    with pytest.raises(InputError, match="--length 0"):
        made(tmp_path, logs, length=0)
    with pytest.raises(InputError, match="'users' is missing"):
        made(tmp_path, logs, user="users")
    paths = write(tmp_path, logs)
    columns = {"user": "user", "item": "item", "time_column": "time"}
    with pytest.raises(InputError, match="would overwrite"):
        pipeline.run(paths, tmp_path, root=str(tmp_path), **columns)
    table = pq.read_table(tmp_path / "train.parquet")
    late = table.set_column(2, "time", table["time"].cast(pa.timestamp("s")))
    pq.write_table(late, tmp_path / "valid.parquet")
    with pytest.raises(InputError, match=r"valid.parquet: column 'time' is timestamp"):
        pipeline.run(
            {**paths, "valid": "valid.parquet"}, tmp_path / "o", root=str(tmp_path), **columns
        )


def test_interrupted_writing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recsys.data.histories._lists", fail)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, {"train": log(1)})
    assert list((tmp_path / "out").iterdir()) == []


def test_result_and_stable_output(tmp_path: Path) -> None:
    logs = {name: log(seed) for seed, name in enumerate(SPLITS)}
    paths = write(tmp_path, logs)
    columns = {"user": "user", "item": "item", "time_column": "time"}
    result = pipeline.run(paths, tmp_path / "one", root=str(tmp_path), **columns)
    pipeline.run(paths, tmp_path / "two", root=str(tmp_path), **columns)
    for name in SPLITS:
        one, two = (pq.read_table(tmp_path / f / f"{name}.parquet") for f in ("one", "two"))
        assert one.equals(two)
        lengths = [len(history) for history in one["history"].to_pylist()]
        numbers = result["histories"][name]["history"]
        assert numbers["mean_length"] == pytest.approx(np.mean(lengths))
        assert numbers["empty_share"] == pytest.approx(np.mean(np.array(lengths) == 0))
        assert open_source(result["out"][name]).num_rows == result["rows"][name] == 40
    assert pipeline.render(result).row_count == 3


@pytest.mark.parametrize("text", ["", ": rating > 3", "a: rating", "a: > 3", "a: rating >"])
def test_bad_history_texts(text: str) -> None:
    with pytest.raises(InputError, match="must be NAME or"):
        parse_history(text)


def test_history_texts() -> None:
    for sign in ("=", "!=", ">=", "<=", ">", "<"):
        history = parse_history(f"liked: rating {sign} 4")
        assert history.where is not None
        assert (history.where.column, history.where.comparison) == ("rating", sign)
    assert parse_history("all").where is None
