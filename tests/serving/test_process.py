"""What command lines set for their process."""

from __future__ import annotations

import platform
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


LIBC, VERSION = platform.libc_ver()
NEW_GLIBC = LIBC == "glibc" and [int(part) for part in VERSION.split(".")] >= [2, 36]


@pytest.mark.skipif(not NEW_GLIBC, reason="an older or another malloc maps large blocks always")
def test_freed_memory_is_used_again_without_new_pages() -> None:
    def faults(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True))

    # Pages may be of 4 KiB or of megabytes.
    assert faults("give back") > 10 * (faults("keep") + 1)
