"""``python -m serving score BUNDLE IN OUT`` scores Parquet files with a bundle, ``python -m serving
http BUNDLE`` answers requests."""

from __future__ import annotations

import argparse
import sys
from typing import List, Sequence

from serving.batch import BATCH_ROWS, score
from serving.errors import InputError
from serving.process import keep_freed_memory
from serving.topk import open_scorer


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 (done), 1 (failed) or 2 (bad input, one line on stderr)."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # the disk is full, a permission is missing
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 1
    return 0


def _score(arguments: argparse.Namespace) -> None:
    scorer = open_scorer(arguments.bundle, arguments.threads, k=arguments.k)
    report = score(
        scorer,
        arguments.source,
        arguments.out,
        keep=arguments.keep,
        batch_rows=arguments.batch_rows,
    )
    rate = report.rows / max(report.seconds, 1e-9)
    print(
        f"{arguments.out}: {report.rows:,} rows in {report.seconds:.1f} s ({rate:,.0f} rows/s)",
        file=sys.stderr,
    )


def _http(arguments: argparse.Namespace) -> None:
    try:
        from serving.http import serve
    except ImportError as error:
        raise InputError(
            f"serving over HTTP takes {error.name}: pip install starlette uvicorn"
        ) from None
    scorer = open_scorer(arguments.bundle, k=arguments.k)
    serve(scorer, arguments.host, arguments.port, arguments.threads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    job = commands.add_parser("score", help="Parquet in, Parquet with scores or lists of items out")
    job.set_defaults(run=_score)
    job.add_argument("bundle", metavar="BUNDLE", help="folder that export wrote")
    job.add_argument("source", metavar="IN", help="Parquet file, folder, glob or URL")
    job.add_argument("out", metavar="OUT", help="Parquet file to write")
    job.add_argument("--keep", type=_names, default=[], metavar="A,B", help="columns to copy")
    job.add_argument("--k", type=_positive, default=None, help="items a row, of a top-k bundle")
    job.add_argument("--threads", type=_positive, default=None, help="torch threads")
    job.add_argument("--batch-rows", type=_positive, default=BATCH_ROWS, help="rows scored at once")
    http = commands.add_parser("http", help="JSON in, JSON with scores or items out")
    http.set_defaults(run=_http)
    http.add_argument("bundle", metavar="BUNDLE", help="folder that export wrote")
    http.add_argument("--host", default="127.0.0.1", help="0.0.0.0: other machines may ask, too")
    http.add_argument("--port", type=int, default=8000, help="0: any free one")
    http.add_argument("--k", type=_positive, default=None, help="items a row, of a top-k bundle")
    http.add_argument("--threads", type=_positive, default=None, help="requests at a time")
    return parser


def _names(text: str) -> List[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
