"""Comparing runs, and the UI on their store."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipelines import compare, ui
from recsys.training.group_significance import gauc_difference
from recsys.training.metrics import evaluate
from recsys.training.significance import auc_difference, auc_interval
from recsys.training.tracking import MlflowTracker
from recsys.types import InputError

ROWS = 2000
RNG = np.random.default_rng(5)
LABELS = (RNG.random(ROWS) < 0.3).astype(np.float32)
USERS = RNG.integers(1, 60, ROWS)
GOOD = (1 / (1 + np.exp(1 - 2 * LABELS - RNG.normal(size=ROWS)))).astype(np.float32)
POOR = np.clip(GOOD + 0.4 * RNG.normal(size=ROWS), 0.001, 0.999).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a store of runs."""
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    """Store: ``poor`` and ``good`` on the same rows, ``other`` on other data, ``bare`` without
    predictions; ``flipped`` claims the same data but has another label; ``weighted`` weighs."""
    address = f"sqlite:///{folder}/mlflow.db"
    order = np.random.default_rng(1).permutation(ROWS)
    flipped = LABELS.copy()
    flipped[0] = 1 - flipped[0]
    for name, experiment, labels, scores, digest in (
        ("good", "shop", LABELS, POOR, "a" * 36),  # an older run of the same name
        ("poor", "shop", LABELS, POOR, "a" * 36),
        ("good", "shop", LABELS[order], GOOD[order], "a" * 36),
        ("other", "shop", LABELS, GOOD, "b" * 36),
        ("flipped", "else", flipped, GOOD, "a" * 36),
        ("bare", "else", None, None, "a" * 36),
        ("weighted", "heavy", LABELS, GOOD, "a" * 36),
        ("user-poor", "users", LABELS, POOR, "a" * 36),
        ("user-good", "users", LABELS, GOOD, "a" * 36),
        ("user-other", "users", LABELS, GOOD, "a" * 36),
    ):
        tracker = MlflowTracker(uri=address, experiment=experiment, system_metrics=False)
        tags = {"model": "lr", "embedding": "full", "folder": f"{name}-{digest[:8]}"}
        if name == "weighted":
            tags["weight"] = "shows"
        tracker.start(name, params={}, tags=tags)
        schema = pa.schema([("label", pa.float32())])
        tracker.log_inputs("test", fingerprint=digest, uri="t.parquet", schema=schema, rows=ROWS)
        tracker.log_metrics({"memory/stored_bytes": 1024.0, "final/test/auc": 0.5}, step=1)
        if labels is not None:
            shuffled = labels is not LABELS and labels is not flipped
            rows = order if shuffled else np.arange(ROWS)
            file = folder / "test.parquet"
            predicted = {"row": rows, "label": labels, "score": scores}
            if experiment == "users":
                predicted["group"] = USERS // 2 if name == "user-other" else USERS
            pq.write_table(pa.table(predicted), file)
            tracker.log_artifact(file, "predictions")
            file.unlink()
        tracker.finish()
        time.sleep(0.01)  # start times are in milliseconds and order the runs
    return address


def test_difference_is_paired_by_row_whatever_the_order(uri: str) -> None:
    result = compare.run(["poor", "good"], uri=uri)
    poor, good = result["runs"]
    assert (poor["name"], good["name"]) == ("poor", "good")
    expected = evaluate(LABELS, GOOD)
    interval = auc_interval(LABELS, GOOD)
    found = auc_difference(LABELS, POOR, GOOD)
    assert good["auc"] == pytest.approx(expected["auc"], abs=1e-12)
    assert (good["auc_low"], good["auc_high"]) == pytest.approx(interval[1:], abs=1e-12)
    assert good["difference"] == pytest.approx(found.value, abs=1e-12)
    assert good["difference_low"] == pytest.approx(found.low, abs=1e-12)
    assert good["p_value"] == pytest.approx(found.p_value, abs=1e-12)
    assert good["logloss"] == pytest.approx(expected["logloss"], abs=1e-12)
    assert good["ne"] == pytest.approx(expected["ne"], abs=1e-12)
    assert good["stored_bytes"] == 1024
    assert good["rows_per_second"] is None
    assert poor["difference"] is None
    assert result["notes"] == []
    json.dumps(result)


def test_gauc_and_its_difference_where_runs_have_the_same_groups(uri: str) -> None:
    result = compare.run(experiment="users", uri=uri)
    poor, good, other = result["runs"]
    found = gauc_difference(LABELS, [POOR], [GOOD], USERS, samples=2_000)
    assert poor["gauc"] == evaluate(LABELS, POOR, groups=USERS)["gauc"]
    assert poor["gauc_difference"] is None
    assert good["gauc_difference"] == found.value > 0
    assert (good["gauc_difference_low"], good["gauc_difference_high"]) == (found.low, found.high)
    assert good["gauc_p_value"] == found.p_value
    assert other["gauc"] == evaluate(LABELS, GOOD, groups=USERS // 2)["gauc"]
    assert other["gauc_difference"] is None
    assert other["difference"] == good["difference"]
    (note,) = result["notes"]
    assert "user-other" in note
    assert "groups rows otherwise than user-poor" in note
    console = Console(width=200, record=True)
    console.print(compare.render(result))
    assert f"{found.value:+.5f} [{found.low:+.5f}, {found.high:+.5f}]" in console.export_text()
    ungrouped = compare.render(compare.run(["poor"], uri=uri)).renderables[0]
    assert "GAUC" not in [column.header for column in ungrouped.columns]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("other", "digest bbbbbbbbbbbb against aaaaaaaaaaaa"), ("flipped", "positions or labels")],
)
def test_other_rows_are_never_differenced(uri: str, name: str, reason: str) -> None:
    result = compare.run(["poor", name], uri=uri)
    assert result["runs"][1]["auc"] is not None
    assert result["runs"][1]["difference"] is None
    assert result["runs"][1]["p_value"] is None
    (note,) = result["notes"]
    assert reason in note
    assert "no difference" in note


def test_a_run_without_predictions_shows_what_it_logged(uri: str) -> None:
    result = compare.run(["poor", "bare"], uri=uri)
    bare = result["runs"][1]
    assert (bare["auc"], bare["auc_low"], bare["difference"]) == (0.5, None, None)
    assert "saved no predictions" in result["notes"][0]


def test_weights_that_do_not_count_are_named(uri: str) -> None:
    (note,) = compare.run(["poor", "weighted"], uri=uri)["notes"]
    assert "weighs rows by 'shows'; here every row counts once" in note


def test_all_runs_of_an_experiment_oldest_first(uri: str) -> None:
    names = [row["name"] for row in compare.run(uri=uri, experiment="shop")["runs"]]
    assert names == ["good", "poor", "good", "other"]
    assert [row["name"] for row in compare.run(uri=uri, experiment="else")["runs"]] == ["flipped"]
    assert len(compare.run(uri=uri)["runs"]) == 9


def test_ids_and_names(uri: str) -> None:
    everything = compare.run(uri=uri, experiment="shop")["runs"]
    oldest = everything[0]["run_id"]
    result = compare.run([oldest, "good"], uri=uri)
    assert [row["run_id"] for row in result["runs"]] == [oldest, everything[2]["run_id"]]
    result = compare.run(["good-aaaaaaaa", "other-bbbbbbbb"], uri=uri)  # folders of runs
    assert [row["name"] for row in result["runs"]] == ["good", "other"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"runs": ["nobody"]},
            "no run 'nobody' in .* it holds bare, flipped, good, other, poor, user-good",
        ),
        ({"experiment": "nothing"}, "no experiment 'nothing'"),
        ({"split": "valid"}, "predictions on 'valid'"),
        ({"split": "vaild"}, "--split 'vaild': must be valid or test"),
    ],
)
def test_nothing_to_compare_is_one_clear_line(uri: str, arguments: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare.run(uri=uri, **arguments)


def test_no_store_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no database at"):
        compare.run(uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_plots_and_table(uri: str, tmp_path: Path) -> None:
    result = compare.run(uri=uri, experiment="shop", out=tmp_path / "plots")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == {"test_roc.png", "test_pr.png", "test_reliability.png"}
    assert {Path(path).name for path in result["plots"]} == names
    console = Console(width=220, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(compare.render(result))
    text = console.export_text()
    good = result["runs"][2]
    assert f"{good['auc']:.5f} [{good['auc_low']:.5f}, {good['auc_high']:.5f}]" in text
    assert "1,024" in text
    assert "note: other" in text


# -- ui ----------------------------------------------------------------------------------------


def test_ui_command_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = ui.command("sqlite:///mlflow.db", port=5001)
    words = shlex.split(line)
    assert words[:4] == [sys.executable, "-m", "mlflow", "ui"]
    assert words[words.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/mlflow.db"
    assert words[words.index("--port") + 1] == "5001"


def test_ui_of_a_server_is_its_own_page() -> None:
    with pytest.raises(InputError, match="open it in a browser"):
        ui.command("http://host:5000")


def test_ui_starts_and_shows_the_runs(uri: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", f"from pipelines import ui; ui.run({uri!r}, {port})"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            found = _ask(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", server)
            names = {entry["name"] for entry in found["experiments"]}
            assert {"shop", "else"} <= names
        finally:
            os.killpg(server.pid, signal.SIGINT)  # what Ctrl-C does: the whole group
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
    assert {path.name for path in tmp_path.iterdir()} == {"log"}


def _ask(url: str, server: subprocess.Popen[bytes]) -> Any:
    """Asks until the server answers; fails when it ended or after five minutes (a busy machine)."""
    request = urllib.request.Request(
        url, b'{"max_results": 10}', {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return json.load(answer)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise AssertionError("the server did not answer")
