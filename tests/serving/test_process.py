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
    blocks = [torch.zeros(4 * 2**20) for _ in range(8)]  # 16 MiB each, as one step may take
    del blocks
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    def faults(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True))

    # Pages may be of 4 KiB or of megabytes.
    assert faults("give back") > 10 * (faults("keep") + 1)
