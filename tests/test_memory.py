"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys
import numpy as np
from drive_seg.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for number in range(12):
    if number == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(1 << 26, dtype=np.uint8)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(argument: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, argument], capture_output=True, text=True, check=True)
    kept, number = done.stdout.split()
    return kept, int(number)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of the GNU C library")
def test_large_blocks_are_used_again() -> None:
    _, mapped = faults("plain")
    kept, reused = faults("keep")
    assert kept == "True"
    assert reused < mapped / 10
