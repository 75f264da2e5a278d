"""A bundle behind HTTP: rows as JSON in, scores or items as JSON out.

    GET  /health     200 once the bundle can answer
    GET  /model      what it is and the columns it reads
    POST /score      {"rows": [{...}, ...]} -> {"scores": [0.12, ...]}
    POST /recommend  {"rows": [{...}, ...], "k": 10} -> {"items": [[7, 3, ...], ...], "scores": ...}

A bundle has one of the last two, by its task. Rows are as `serving.rows.from_dicts` takes them;
times are text by ISO 8601. What is wrong with a request is one line, ``{"error": ...}``, with
status 400 (413 for too many bytes or rows). starlette and uvicorn are needed here alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import math
import os
import socket
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.errors import InputError
from serving.scorer import Scorer
from serving.topk import TopK

__all__ = ["MAX_BYTES", "MAX_ROWS", "application", "serve"]

MAX_BYTES = 32 * 2**20
MAX_ROWS = 10_000


class _TooLarge(InputError):
    """A request beyond the limits."""


def application(scorer: Scorer | TopK, threads: int | None = None) -> Starlette:
    """The ASGI application of an opened bundle.

    ``threads``: requests that are computed at a time, each by one thread; None: one a core. Errors:
    `InputError` for a bundle that reads bytes, which JSON does not have.
    """
    for field in scorer.inputs:
        if field.dtype == "binary":
            raise InputError(
                f"column {field.column!r} is of bytes, which JSON does not have; score with "
                "`python -m serving score`, or train on text"
            )
    times = {field.column for field in scorer.inputs if field.dtype == "timestamp"}
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, "answer", torch.set_num_threads, (1,))

    def score(asked: Dict[str, Any]) -> Dict[str, Any]:
        assert isinstance(scorer, Scorer)
        return {"scores": _numbers(scorer.predict(_rows(asked, times)).tolist())}

    def recommend(asked: Dict[str, Any]) -> Dict[str, Any]:
        assert isinstance(scorer, TopK)
        found = scorer.recommend(_rows(asked, times), asked.get("k"))
        return {"items": found.items.to_pylist(), "scores": found.scores.to_pylist()}

    work, path = (recommend, "/recommend") if isinstance(scorer, TopK) else (score, "/score")

    async def answer(request: Request) -> Response:
        try:
            asked = _parsed(await _body(request))
            loop = asyncio.get_running_loop()
            return JSONResponse(await loop.run_in_executor(pool, work, asked))
        except InputError as error:
            status = 413 if isinstance(error, _TooLarge) else 400
            return JSONResponse({"error": str(error)}, status)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ready"})

    async def model(_: Request) -> Response:
        return JSONResponse(_described(scorer, path))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        pool.shutdown()

    routes = [
        Route("/health", health),
        Route("/model", model),
        Route(path, answer, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def serve(
    scorer: Scorer | TopK, host: str = "127.0.0.1", port: int = 8000, threads: int | None = None
) -> None:
    """Answers until it is stopped (SIGINT, SIGTERM), then finishes what it has begun.

    ``port`` 0: any free one; the address is printed. Errors: `InputError` for an address that
    cannot be had, and see `application`.
    """
    app = application(scorer, threads)
    try:
        bound = socket.create_server((host, port))
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise InputError(
            f"cannot listen on {host}:{port} ({reason}); give another --host or --port"
        ) from None
    # connections inherit it; without, small answers wait for 40 ms, since asyncio sets it only on
    # sockets that name their protocol
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    place = bound.getsockname()
    print(f"{scorer.bundle.path} answers on http://{place[0]}:{place[1]}", flush=True)
    with bound:
        uvicorn.Server(config).run(sockets=[bound])


async def _body(request: Request) -> bytes:
    parts: List[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BYTES:
            raise _TooLarge(f"the request is larger than {MAX_BYTES} bytes; send fewer rows")
        parts.append(part)
    return b"".join(parts)


def _parsed(body: bytes) -> Dict[str, Any]:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request is not JSON ({error}); send an object with rows") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("rows"), list):
        raise InputError('the request must be an object with a list of rows: {"rows": [{...}]}')
    if len(asked["rows"]) > MAX_ROWS:
        raise _TooLarge(f"{len(asked['rows'])} rows, but {MAX_ROWS} at most; send them in parts")
    return asked


def _rows(asked: Mapping[str, Any], times: set[str]) -> List[Any]:
    rows: List[Any] = asked["rows"]
    for number, row in enumerate(rows if times else ()):
        for column in times & row.keys() if isinstance(row, dict) else ():
            row[column] = _moment(row[column], column, number)
    return rows


def _moment(value: Any, column: str, number: int) -> Any:
    if isinstance(value, list):
        return [_moment(part, column, number) for part in value]
    if value is None:
        return None
    try:
        return datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise InputError(
            f"column {column!r}, row {number}: {value!r} is no time; write it as text like "
            "2026-11-30T12:00:00Z"
        ) from None


def _numbers(scores: List[float]) -> List[float | None]:
    return [None if math.isnan(score) else score for score in scores]


def _described(scorer: Scorer | TopK, path: str) -> Dict[str, Any]:
    manifest = scorer.bundle.manifest
    inputs = {
        field.column: f"list of {field.dtype}" if field.kind == "ids" else field.dtype
        for field in scorer.inputs
    }
    known = {key: manifest.get(key) for key in ("name", "run_id", "created")}
    limit = {"rows": MAX_ROWS, "bytes": MAX_BYTES}
    more = {"k": scorer.k} if isinstance(scorer, TopK) else {}
    return {**known, "post": path, "columns": inputs, "limits": limit, **more}
