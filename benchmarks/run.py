"""Times recsys and its peers on the same files in one run; prints a table, writes JSON.

    python -m benchmarks.run            the full run: 1 M rows, two id spaces
    python -m benchmarks.run --quick    a small one, to see that everything works

Every stage is a process of its own. Within a stage the systems take turns (A B C, A B C, ...), so
that a slow minute of the machine meets all of them; a figure is the median over the turns. Peak
memory is taken in a turn of its own after them: looking at the pages of a process stops it, and
one that lasts seconds would be slowed by more than one that lasts minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks.memory import PeakMemory, tree_bytes
from benchmarks.report import goals, render, summarise
from recsys.data.synthetic import write_criteo_log

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
BATCH_SIZE = 4096
STAGES = ("ingest", "train", "predict")
Record = dict[str, Any]


@dataclass(frozen=True)
class System:
    """A column of the table: which interpreter runs which module, and for which stages."""

    name: str
    python: Path
    module: str
    precision: str = "fp32"
    stages: tuple[str, ...] = STAGES
    setup: tuple[str, ...] = ()  # untimed stages before the first predict


def systems(peers: Path) -> list[System]:
    """Everything that is compared, recsys first."""
    here, there = Path(sys.executable), peers / "bin" / "python"
    return [
        System("recsys", here, "ours", setup=("export",)),
        System("recsys bf16", here, "ours", precision="bf16", stages=("train",)),
        System("fuxictr", there, "peer_fuxictr"),
        System("deepctr-torch", there, "peer_deepctr"),
        System("torch-rechub", there, "peer_rechub"),
    ]


def write_data(folder: Path, *, rows: int, score_rows: int, ids: int) -> tuple[Path, Path]:
    """The raw log and its first rows as the file to score; made once."""
    log, head = folder / "log.parquet", folder / "score.parquet"
    if head.exists():
        return log, head
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_criteo_log(log, rows=rows, ids=ids, seed=1)
    table = next(pq.ParquetFile(log).iter_batches(batch_size=score_rows))
    with pq.ParquetWriter(head, table.schema) as writer:
        writer.write_batch(table)
    return log, head


def run_stage(
    system: System, stage: str, arguments: Sequence[str], threads: int, *, watch: bool
) -> Record:
    """One stage in one process: its JSON line; or the tail of its error.

    ``watch``: with its peak memory instead of its times.
    """
    count = str(threads)
    env = {
        **os.environ,
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "POLARS_MAX_THREADS": count,
        "ARROW_NUM_THREADS": count,
    }
    command = [str(system.python), "-m", f"benchmarks.{system.module}", stage, *arguments]
    process = subprocess.Popen(
        [*command, "--precision", system.precision],
        cwd=HERE.parent,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        look = partial(tree_bytes, psutil.Process(process.pid))
        with PeakMemory(look) if watch else nullcontext() as memory:
            out, error = process.communicate()
    finally:
        process.kill()  # nothing to a process that has ended; on Ctrl-C no stage stays behind
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode != 0 or (not lines and stage != "export"):
        tail = " | ".join(error.strip().splitlines()[-3:])
        return {"failed": f"exit code {process.returncode}: {tail}"}
    record = json.loads(lines[-1]) if lines else {}
    if memory is None:
        return record
    peak = max(memory.bytes, record.get("process_peak_bytes", 0))
    times = ("seconds", "rows_per_second")
    return {k: v for k, v in record.items() if k not in times} | {"tree_peak_bytes": peak}


def run_dataset(
    dataset: str, compared: Sequence[System], log: Path, head: Path, options: argparse.Namespace
) -> list[Record]:
    """All stages of all systems on one log, in turns."""
    records: list[Record] = []
    work = OUT / "work" / dataset
    for stage in STAGES:
        for turn in range(options.repeats + 1):
            watch = turn == options.repeats
            for system in compared:
                if stage not in system.stages:
                    continue
                folder = work / system.module
                if stage == "ingest":
                    shutil.rmtree(folder, ignore_errors=True)
                arguments = [
                    *("--log", str(log), "--score-file", str(head), "--work", str(folder)),
                    *("--steps", str(options.steps), "--warmup", str(options.warmup)),
                    *("--threads", str(options.threads), "--batch-size", str(BATCH_SIZE)),
                ]
                if stage == "predict" and turn == 0:
                    for extra in system.setup:
                        made = run_stage(system, extra, arguments, options.threads, watch=False)
                        if "failed" in made:
                            records.append({"dataset": dataset, "stage": extra, **made})
                record = run_stage(system, stage, arguments, options.threads, watch=watch)
                record |= {"dataset": dataset, "stage": stage, "system": system.name, "turn": turn}
                records.append(record)
                said = record.get("failed") or (
                    f"{record['tree_peak_bytes'] / 1e6:,.0f} MB"
                    if watch
                    else f"{record['seconds']:.2f} s, {record['rows_per_second']:,.0f} rows/s"
                )
                print(f"{dataset} {stage} {system.name} [{turn + 1}]: {said}", file=sys.stderr)
    return records


def machine() -> Record:
    """What the numbers were taken on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_before": os.getloadavg(),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Sizes: the full run by default, each one settable."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="100 k rows, few steps, one turn")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--score-rows", type=int)
    parser.add_argument("--ids", type=int, nargs="+", help="id spaces, one data set each")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--systems", nargs="+", help="only these (default: all)")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".venv-peers")
    options = parser.parse_args(argv)
    full = {"rows": 1_000_000, "score_rows": 200_000, "steps": 25, "repeats": 3}
    full["ids"] = [120_000, 1_560_000]
    quick = {"rows": 100_000, "score_rows": 50_000, "steps": 8, "repeats": 1, "ids": [30_000]}
    for name, value in (quick if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a stage failed, or 2 for a wrong request."""
    options = parse(argv)
    compared = systems(options.peers)
    if options.systems:
        unknown = set(options.systems) - {system.name for system in compared}
        if unknown:
            known = ", ".join(system.name for system in compared)
            print(f"--systems: no {', '.join(sorted(unknown))}; there are {known}", file=sys.stderr)
            return 2
        compared = [system for system in compared if system.name in options.systems]
    if (options.warmup + options.steps) * BATCH_SIZE > options.rows:
        print("--steps: warm-up and steps need more rows than --rows", file=sys.stderr)
        return 2
    missing = [system.python for system in compared if not system.python.exists()]
    if missing:
        print(f"{missing[0]} is missing: run `make bench-peers` first", file=sys.stderr)
        return 2
    started = time.time()
    records: list[Record] = []
    before = machine()
    for ids in options.ids:
        dataset = f"{options.rows}-rows-{ids}-ids"
        log, head = write_data(
            OUT / "data" / f"{dataset}-{options.score_rows}",
            rows=options.rows,
            score_rows=options.score_rows,
            ids=ids,
        )
        records += run_dataset(dataset, compared, log, head, options)
    summary = summarise(records)
    settings = {name: str(value) for name, value in vars(options).items()}
    reached = goals(summary)
    result = {
        "machine": before,
        "settings": settings,
        "seconds": round(time.time() - started),
        "summary": summary,
        "goals": reached,
        "runs": records,
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "peers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(render(summary, reached))
    print(f"\nall numbers: {OUT / 'peers.json'}")
    return 1 if any("failed" in record for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
