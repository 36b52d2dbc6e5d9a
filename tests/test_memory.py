"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

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
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, argument], capture_output=True, text=True, check=True, timeout=120
    )
    kept, number = done.stdout.split()
    return kept, int(number)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of the GNU C library")
def test_large_blocks_are_used_again() -> None:
    _, mapped = faults("plain")
    kept, reused = faults("keep")
    assert kept == "True"
    assert reused < mapped / 10


ADVISED = """
from drive_seg.memory import keep_freed_memory

assert keep_freed_memory()
advised, size = 0, 0
for line in open("/proc/self/smaps"):
    name, *values = line.split()
    if name == "Size:":
        size = int(values[0])
    elif name == "VmFlags:" and "hg" in values:
        advised += size
print(advised)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of the GNU C library")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="the system has no huge pages")
def test_the_heap_to_come_is_asked_to_be_in_huge_pages() -> None:
    done = subprocess.run([sys.executable, "-c", ADVISED], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) >= 2 * 1024 * 1024 - 4096, "KiB: 2 GiB of address space"
