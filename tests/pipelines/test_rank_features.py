"""`recsys outrank` on a log with a planted truth, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from pipelines import outrank
from pipelines.cli import app
from recsys.config import parse_config
from recsys.types import InputError

ROWS = 30_000


def tree(**features: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "data": {"train": "log.parquet", "label": "click"},
        "features": features,
        "embedding": {"method": "full"},
        "model": {"name": "lr"},
    }


FEATURES = {
    "shop": {"type": "categorical"},
    "visit": {"type": "categorical"},
    "price": {"type": "numeric"},
    "tags": {"type": "bag"},
    "day": {"type": "categorical"},
    "sky": {"type": "categorical"},
    "priced": {"type": "null_indicator", "column": "price"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log sorted by label: shops and prices matter, a tag does, and ``day`` with ``sky`` only
    together; ``visit`` is another number in every row."""
    folder = tmp_path_factory.mktemp("outrank")
    rng = np.random.default_rng(0)
    shop, day, sky = (rng.integers(0, n, ROWS) for n in (40, 2, 2))
    price = np.exp(rng.normal(size=ROWS))
    tagged = rng.random(ROWS) < 0.3
    logit = (shop % 4 - 1.5) + 1.2 * np.log(price) + 2.0 * tagged + 3.0 * (day ^ sky) - 3.0
    click = (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    order = np.argsort(click, kind="stable")
    missing = rng.random(ROWS) < 0.1
    columns = {
        "click": click[order],
        "shop": [f"s{value}" for value in shop[order]],
        "visit": np.arange(ROWS),
        "price": pa.array(price[order], mask=missing),
        "tags": [["sale", "new"] if there else ["new"] for there in tagged[order]],
        "day": day[order],
        "sky": sky[order],
    }
    pq.write_table(pa.table(columns), folder / "log.parquet", row_group_size=4_000)
    return folder


def found(root: Path, **keys: Any) -> dict[str, Any]:
    return outrank.run(parse_config(tree(**FEATURES)), root=str(root), **keys)


def test_planted_truth_in_one_batch(root: Path) -> None:
    result = found(root, batch_rows=ROWS, crosses=100)
    rows = {row["feature"]: row for row in result["features"]}
    assert result["rows"] == ROWS
    assert result["batches"] == 1
    assert rows["visit"]["noise"]
    assert abs(rows["visit"]["score"]) < 1e-9
    assert rows["priced"]["noise"]
    for name in ("shop", "price", "tags"):
        assert not rows[name]["noise"], name
        assert rows[name]["score"] > 0.01, name
    assert {name: row["values"] for name, row in rows.items() if name != "price"} == {
        "shop": 40, "visit": ROWS, "tags": 2, "day": 2, "sky": 2, "priced": 2
    }  # fmt: skip
    assert rows["price"]["coverage"] == pytest.approx(0.9, abs=0.01)
    assert rows["price"]["values"] == round(rows["price"]["coverage"] * ROWS)
    best = result["crosses"][0]
    assert best["features"] == ["day", "sky"]
    assert best["gain"] > 0.05
    assert rows["day"]["score"] + rows["sky"]["score"] < 0.01
    shares = [row["share"] for row in result["features"]]
    assert shares == sorted(shares, reverse=True)
    assert all(0 - 0.01 < share < 1 for share in shares)


def test_batches_are_full_and_in_random_order(root: Path) -> None:
    """The log is sorted by label: a batch of neighbours would have one label."""
    result = found(root, rows=10_000, batch_rows=3_000)
    assert (result["rows"], result["batches"]) == (9_000, 3)
    assert found(root, rows=10_000, batch_rows=4_000)["rows"] == 10_000
    assert found(root, rows=700)["rows"] == 700
    assert found(root, rows=10**9, batch_rows=7_000)["batches"] == 4
    assert 0.5 < result["label_entropy"] < np.log(2)
    rows = {row["feature"]: row for row in result["features"]}
    assert rows["shop"]["low"] > 0.01  # in every batch
    assert not rows["shop"]["noise"]


def test_rows_are_drawn_by_their_weights(root: Path, tmp_path: Path) -> None:
    """Rows without weight have another label for every shop."""
    table = pq.read_table(root / "log.parquet").select(["shop"])
    odd = np.array([int(shop[1:]) % 2 for shop in table["shop"].to_pylist()])
    weight = np.random.default_rng(0).choice([0.0, 0.5, 2.0], len(odd))
    click = np.where(weight > 0, odd, 1 - odd)
    table = table.append_column("click", pa.array(click)).append_column("w", pa.array(weight))
    pq.write_table(table, tmp_path / "log.parquet")
    config = tree(shop={"type": "categorical"})
    config["data"]["weight"] = "w"
    result = outrank.run(parse_config(config), root=str(tmp_path), batch_rows=ROWS)
    assert result["features"][0]["share"] == pytest.approx(1, abs=0.01)
    assert result["rows"] == pytest.approx(ROWS * (1 / 3 + 0.25 / 3), rel=0.05)
    console = Console(width=140, record=True)
    console.print(outrank.render(result))
    assert "rows were drawn in proportion to 'w'" in console.export_text()


def test_command(root: Path) -> None:
    (root / "run.yaml").write_text(json.dumps(tree(**FEATURES)))
    arguments = ["outrank", str(root / "run.yaml"), "--data-root", str(root), "--crosses", "99"]
    printed = CliRunner().invoke(app, [*arguments, "--batch-rows", str(ROWS), "--json"])
    assert printed.exit_code == 0, printed.output
    result = json.loads(printed.stdout)
    assert result["order"][0] in ("price", "shop")
    console = Console(width=140, record=True)
    console.print(outrank.render(result))
    shown = console.export_text()
    assert "day x sky" in shown
    assert "no more than noise" in shown
    assert "3MR: " in shown


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"shops": {"type": "categorical"}}, "features.shops: column 'shops' is missing .* 'shop'"),
        ({"price": {"type": "categorical"}}, "features.price: column 'price' .* is double"),
    ],
)
def test_refusals(root: Path, features: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        outrank.run(parse_config(tree(**features)), root=str(root))


def test_rows_that_all_weigh_nothing_are_refused(tmp_path: Path) -> None:
    table = pa.table({"click": [0] * 1_000, "shop": ["a"] * 1_000, "w": [1.0] + [0.0] * 999})
    pq.write_table(table, tmp_path / "log.parquet")
    config = tree(shop={"type": "categorical"})
    config["data"]["weight"] = "w"
    with pytest.raises(InputError, match="column 'w' is 0 in all rows read"):
        outrank.run(parse_config(config), root=str(tmp_path), rows=1)


def test_one_label_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"click": [1, 1], "shop": ["a", "b"]}), tmp_path / "log.parquet")
    config = parse_config(tree(shop={"type": "categorical"}))
    with pytest.raises(InputError, match=r"log\.parquet: all 2 rows that were read have one label"):
        outrank.run(config, root=str(tmp_path))
