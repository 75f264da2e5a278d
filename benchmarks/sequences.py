"""Training speed of sequence models beside RecBole: same windows of ML-1M, same shapes, one thread.

    make bench-sequences
    python -m benchmarks.sequences [--models bert4rec sasrec] [--steps 24] [--turns 3]

All systems of a model are alive at once and take turns, one thread each; a figure is the median
over the turns. CPU time stands beside wall clock: on a busy machine it is what a step costs. A
*target* is a position whose item a step learns to predict: the masked items of BERT4Rec; in SASRec
each next item of a window (recsys) or the last one alone (RecBole).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.our_sequences import write_windows
from benchmarks.run import HERE, OUT, machine
from benchmarks.turns import MODELS, SequenceJob

RIVAL = "RecBole"
WARMUP_STEPS = 2
Record = dict[str, Any]


@dataclass(frozen=True)
class System:
    """A line of the table: which interpreter runs which module at which precision."""

    name: str
    python: Path
    module: str
    precision: str = "fp32"


def systems(peer: Path) -> list[System]:
    """Everything that is compared."""
    here = Path(sys.executable)
    return [
        System("recsys", here, "our_sequences"),
        System("recsys bf16", here, "our_sequences", "bf16"),
        System(RIVAL, peer / "bin" / "python", "peer_recbole"),
    ]


class Failed(Exception):
    """A system's process has ended early; the text is the end of what it said."""


class Running:
    """One system's process. It works only within `turn`."""

    def __init__(self, system: System, job: SequenceJob) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        paths = [str(HERE.parent), *filter(None, [env.get("PYTHONPATH")])]
        self._errors = job.work / f"{job.model}-{system.name.replace(' ', '-')}.stderr"
        with self._errors.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [
                    *(str(system.python), "-m", f"benchmarks.{system.module}", job.model),
                    *("--precision", system.precision, "--batch-size", str(job.batch_size)),
                    *("--work", str(job.work), "--data-root", job.data_root),
                ],
                cwd=job.work,  # RecBole leaves folders where it is started
                env={**env, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def turn(self, steps: int) -> Record:
        """Trains so many steps and says what they took."""
        assert self._process.stdin is not None
        try:
            print(steps, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._failure() from None
        return self._answer()

    def finish(self) -> Record:
        """Ends the process: its loss, peak memory and packages."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        answer = self._answer()
        self._process.wait()
        return answer

    def stop(self) -> None:
        """Nothing to a process that has ended; on an error or Ctrl-C none stays behind."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Record:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                record: Record = json.loads(line)
                return record
        raise self._failure()

    def _failure(self) -> Failed:
        said = self._errors.read_text(encoding="utf-8").strip().splitlines()
        return Failed(f"exit code {self._process.wait()}: {' | '.join(said[-3:])}")


def run_model(
    job: SequenceJob, compared: Sequence[System], *, steps: int, turns: int
) -> list[Record]:
    """One record per system and turn; the warm-up is none."""
    records: list[Record] = []
    running = {}
    try:
        for system in compared:
            running[system.name] = started = Running(system, job)
            started.turn(WARMUP_STEPS)
        for turn in range(turns):
            for name, process in running.items():
                done = process.turn(steps)
                records.append({"model": job.model, "system": name, "turn": turn, **done})
                said = f"{done['seconds']:.1f} s, {done['cpu_seconds']:.1f} s of CPU"
                print(f"{job.model} {name} [{turn + 1}]: {said}", file=sys.stderr, flush=True)
        for name, process in running.items():
            last = process.finish()
            for record in records:
                if record["system"] == name:
                    record.update(last)
    finally:
        for process in running.values():
            process.stop()
    return records


def summarise(records: Sequence[Record]) -> list[Record]:
    """One line per model and system: medians over turns; ``speed``: relative to RecBole's."""
    lines: dict[tuple[str, str], Record] = {}
    for record in records:
        key = (record["model"], record["system"])
        if key not in lines:
            own = [r for r in records if (r["model"], r["system"]) == key]
            line: Record = {"model": key[0], "system": key[1], "loss": record["loss"]}
            line["peak_bytes"] = record["peak_bytes"]
            for clock in ("seconds", "cpu_seconds"):
                line[clock] = statistics.median(r[clock] / r["steps"] for r in own)
                for what in ("sequences", "targets"):
                    rate = statistics.median(r[what] / r[clock] for r in own)
                    line[f"{what}_per_{clock}"] = rate
            lines[key] = line
    for (model, _), line in lines.items():
        rival = lines.get((model, RIVAL))
        for clock in ("seconds", "cpu_seconds"):
            for what in ("sequences", "targets"):
                key_ = f"{what}_per_{clock}"
                line[f"speed_{key_}"] = line[key_] / rival[key_] if rival else None
    return list(lines.values())


def render(lines: Sequence[Record]) -> str:
    """The summary as a Markdown table."""
    rows = [
        "| model | system | ms a step: wall, CPU | sequences/s: wall, CPU | targets/s: wall, CPU "
        "| sequences against RecBole: wall, CPU | targets: wall, CPU | peak MB | loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        cells = [line["model"], line["system"]]
        cells.append(f"{line['seconds'] * 1e3:,.0f}, {line['cpu_seconds'] * 1e3:,.0f}")
        for kind, form, end in (("", ",.0f", ""), ("speed_", ".2f", "x")):
            for what in ("sequences", "targets"):
                found = (line[f"{kind}{what}_per_{clock}"] for clock in ("seconds", "cpu_seconds"))
                cells.append(", ".join("-" if x is None else f"{x:{form}}{end}" for x in found))
        cells += [f"{line['peak_bytes'] / 1e6:,.0f}", f"{line['loss']:.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if a system failed, or 2 for a wrong request."""
    root = Path(os.environ.get("RECSYS_DATA_ROOT", HERE.parent.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--systems", nargs="+", help="only these (default: all)")
    parser.add_argument("--steps", type=int, default=24, help="of one turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--data-root", type=Path, default=root, help="folder of ml-1m")
    parser.add_argument("--peer", type=Path, default=HERE.parent / ".venv-recbole")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(argv)
    compared = systems(options.peer)
    names = options.systems or [system.name for system in compared]
    compared = [system for system in compared if system.name in names]
    if len(compared) != len(names):
        known = ", ".join(system.name for system in systems(options.peer))
        print(f"--systems: there are {known}", file=sys.stderr)
        return 2
    missing = [system.python for system in compared if not system.python.exists()]
    if missing:
        print(f"{missing[0]} is missing: run `bash benchmarks/recbole.sh` first", file=sys.stderr)
        return 2

    started, before, records = time.time(), machine(), []
    work = options.out.resolve() / "sequences"
    work.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        root = str(options.data_root.resolve())
        job = SequenceJob(model, "fp32", options.batch_size, work, root)
        write_windows(job, work / "recbole")
        try:
            records += run_model(job, compared, steps=options.steps, turns=options.turns)
        except Failed as failure:
            print(f"{model}: {failure}", file=sys.stderr)
            return 1
    result = {
        "machine": before,
        "settings": {name: str(value) for name, value in vars(options).items()},
        "seconds": round(time.time() - started),
        "summary": summarise(records),
        "runs": records,
    }
    path = options.out / "sequences.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{render(result['summary'])}\n\nall numbers: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
