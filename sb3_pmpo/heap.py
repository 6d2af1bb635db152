"""The heap of the process."""

from __future__ import annotations

import torch as th

#: Just below the largest size that glibc learns from (DEFAULT_MMAP_THRESHOLD_MAX).
_LARGEST = 2**25 - 2**16


def keep_freed_memory() -> None:
    """Let freed tensors of up to 32 MiB stay in the heap, for the next ones.

    glibc maps a block above its threshold anew each time, page fault by page fault, which costs an
    update's temporaries more than their arithmetic. Freeing one such block raises the threshold to
    its size (``M_MMAP_THRESHOLD`` in mallopt(3)); none of its pages is touched. Other allocators
    do not care.
    """
    th.empty(_LARGEST, dtype=th.uint8)
