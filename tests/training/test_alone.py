"""One process at a time in a run's folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recsys.disk import alone_in
from recsys.types import InputError

HOLDS = """
import pathlib, sys
from recsys.disk import alone_in
with alone_in(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the folder until it can read to an end."""
    made = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert made.stdout is not None
    assert made.stdout.readline() == "held\n"
    return made


def test_another_process_is_kept_out_until_this_one_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = holder(folder)
    kept_out = pytest.raises(InputError, match="another process is training this very config")
    with kept_out, alone_in(folder):
        pass
    other.communicate("")
    with alone_in(folder):
        assert folder.is_dir()
    with alone_in(folder):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    other = holder(tmp_path)
    other.kill()
    other.wait()
    with alone_in(tmp_path):
        pass
