"""Freed tensors stay in the heap: no page fault for the next of their size."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch as th
from sb3_pmpo.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for mebibytes in range(1, 21):  # each is above the threshold that the last one raised
        th.zeros(mebibytes, 2**18).add_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[1] == "keep":
    keep_freed_memory()
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss < 1024  # KiB: nothing was touched
first = faults()
for _ in range(4):  # in the heap they take several passes to find places for all sizes
    faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other rules")
def test_freed_memory_is_used_again() -> None:
    faults = {
        mode: [
            int(count)
            for count in subprocess.run(
                [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
            ).stdout.split()
        ]
        for mode in ("keep", "leave")
    }
    first, settled = faults["keep"]
    assert settled < 100  # 20 tensors of 256 to 5120 pages
    assert faults["leave"][0] > 10 * max(settled, 1)
    assert faults["leave"][0] > 3 * first
