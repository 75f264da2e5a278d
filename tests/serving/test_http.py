"""A bundle behind HTTP: the answers of the scorer, and what is said of bad requests."""

from __future__ import annotations

import datetime as dt
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import uvicorn

import serving.http as module
from recsys.bundle import export
from serving.encode import InputField
from serving.errors import InputError
from serving.scorer import Scorer
from serving.topk import TopK

sys.path.insert(0, str(Path(__file__).parents[1] / "bundle"))
from doubles import INPUTS, parts, table
from test_topk_bundle import exported


class Answer(NamedTuple):
    status: int
    body: Any


class Client:
    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, path: str, body: bytes | dict[str, Any] | None = None) -> Answer:
        raw = json.dumps(body).encode() if isinstance(body, dict) else body
        request = urllib.request.Request(self.address + path, raw)
        try:
            with urllib.request.urlopen(request, timeout=60) as found:
                return Answer(found.status, json.loads(found.read()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, json.loads(error.read()))


@contextmanager
def running(app: Any) -> Iterator[Client]:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{bound.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("http") / "b"
    return export(*parts(), INPUTS, out, manifest={"name": "shop"})


@pytest.fixture(scope="module")
def ask(bundle: Path) -> Iterator[Client]:
    with running(module.application(Scorer(bundle))) as client:
        yield client


def test_scores_are_those_of_the_scorer(bundle: Path, ask: Client) -> None:
    rows = table(40).to_pylist()
    found = ask("/score", {"rows": rows})
    assert found.status == 200
    want = Scorer(bundle).predict(rows)
    assert np.array_equal(np.array(found.body["scores"], np.float32), want)
    assert ask("/score", {"rows": []}) == (200, {"scores": []})


def test_requests_at_once_keep_their_answers(bundle: Path, ask: Client) -> None:
    rows = table(40).to_pylist()
    want = [float(score) for score in Scorer(bundle).predict(rows)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: ask("/score", {"rows": [row]}), rows * 5))
    for n, answer in enumerate(found):
        assert answer.status == 200
        assert answer.body["scores"] == [pytest.approx(want[n % 40], abs=1e-6)]


def test_items_are_those_of_the_bundle(tmp_path: Path) -> None:
    scorer = TopK(exported(tmp_path / "b"))
    rows = [{"history": ["item 3", "item 4"]}, {"history": None}]
    with running(module.application(scorer)) as ask:
        for k in (None, 2):
            found = ask("/recommend", {"rows": rows} | ({} if k is None else {"k": k}))
            want = scorer.recommend(rows, k)
            assert found.body["items"] == want.items.to_pylist()
            assert found.body["scores"] == want.scores.to_pylist()
        assert ask("/model").body["k"] == scorer.k
        assert ask("/recommend", {"rows": rows, "k": 0}).body["error"].startswith("k: k is 0; give")


def test_it_says_what_it_is(ask: Client) -> None:
    assert ask("/health") == (200, {"status": "ready"})
    status, body = ask("/model")
    assert status == 200
    assert body["name"] == "shop"
    assert body["post"] == "/score"
    columns = {"price": "float", "user": "text", "item": "int", "tags": "list of text"}
    assert body["columns"] == columns


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"rows", "the request is not JSON"),
        (b"[" * 100_000, "the request is not JSON"),
        (b"[]", 'the request must be an object with a list of rows: {"rows": [{...}]}'),
        ({"rows": {"user": "u"}}, "the request must be an object with a list of rows"),
        ({"rows": [1]}, "row 0 is int; give each row as a dict"),
        ({"rows": [{"user": "u", "item": "7"}]}, "column 'item', row 0: '7' is str, but the model"),
        ({"rows": [{"usr": "u"}]}, "row 0 has the keys usr, but the model reads"),
    ],
)
def test_bad_requests_are_one_line(ask: Client, body: Any, message: str) -> None:
    status, said = ask("/score", body)
    assert status == 400
    assert message in said["error"]
    assert "\n" not in said["error"]
    assert ask("/score", {"rows": [{}]}).status == 200  # and the next one is answered


def test_large_requests_are_refused(ask: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    assert ask("/score", {"rows": [{}] * 3}).status == 200
    assert ask("/score", {"rows": [{}] * 4}) == (
        413,
        {"error": "4 rows, but 3 at most; send them in parts"},
    )
    monkeypatch.setattr(module, "MAX_BYTES", 30)
    status, said = ask("/score", {"rows": [{"user": "u" * 30}]})
    assert (status, said["error"]) == (413, "the request is larger than 30 bytes; send fewer rows")


def test_times_are_text_by_iso_8601() -> None:
    row = {"seen": "2026-11-30T12:00:00Z", "days": ["2026-11-30", None]}
    (found,) = module._rows({"rows": [row]}, {"seen", "days", "absent"})
    assert found["seen"] == dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
    assert found["days"] == [dt.datetime(2026, 11, 30), None]
    for wrong in ("soon", 17):
        with pytest.raises(InputError, match=f"column 'seen', row 1: {wrong!r} is no time"):
            module._rows({"rows": [{}, {"seen": wrong}]}, {"seen"})


def test_bytes_are_refused_at_the_start(tmp_path: Path) -> None:
    inputs = [*INPUTS[:1], InputField("user", "user", "id", "binary"), *INPUTS[2:]]
    out = export(*parts(), inputs, tmp_path / "b", manifest={})
    with pytest.raises(InputError, match="column 'user' is of bytes, which JSON does not have"):
        module.application(Scorer(out))


def test_the_command_answers_without_recsys_and_stops_when_asked(bundle: Path) -> None:
    banned = "import sys; sys.modules.update(dict.fromkeys(['recsys', 'mlflow', 'torchrec']));"
    code = f"{banned} from serving.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "http", str(bundle), "--port", "0"]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            port = int(address.rpartition(":")[2])
            assert Client(address)("/score", {"rows": [{}]}).status == 200
            taken = subprocess.run(
                [*command[:-1], str(port)], cwd=root, capture_output=True, text=True, check=False
            )
        finally:
            process.terminate()
    assert process.returncode in (0, -15)
    assert taken.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in taken.stderr


def test_not_a_number_is_null() -> None:
    assert module._numbers(torch.tensor([0.5, float("nan")]).tolist()) == [0.5, None]
