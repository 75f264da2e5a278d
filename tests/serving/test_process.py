"""What command lines set for their process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from serving.process import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(12):  # the first ones make the heap
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(16 * 2**20)  # 64 MiB, freed at once
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    def faults(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True))

    pages = 64 * 2**20 // 4096
    assert faults("keep") < pages / 100
    assert faults("give back") > pages / 10  # huge pages make it fewer than all
