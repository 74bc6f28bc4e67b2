"""Memory in large pages that the process keeps, so that a step on a CPU does not wait for memory."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""There where the system has large pages."""
TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""M_TRIM_THRESHOLD and M_MMAP_MAX of ``mallopt(3)``."""
SETTINGS = ("TRIM_THRESHOLD_", "MMAP_THRESHOLD_", "MMAP_MAX_")
"""What a user sets in the environment, after ``MALLOC_``, to manage freed memory otherwise."""


def use_huge_pages() -> None:
    """Ask for large pages for tensors, and keep what they leave free; to be called before torch makes its first.

    A step allocates and frees the same hundreds of megabytes again and again. Otherwise the system maps and clears
    pages of 4 KiB anew in every step, more than a processor finds quickly. Here tensors from 2 MiB on get pages of
    2 MiB (torch's own THP_MEM_ALLOC_ENABLE, on Linux), and glibc keeps freed blocks of any size for the next step, so
    that the process stays as large as it once was. The numbers are the same.

    What the user's environment says stands: ``THP_MEM_ALLOC_ENABLE=0`` turns large pages off, and
    ``MALLOC_TRIM_THRESHOLD_=131072`` (or any other of malloc's settings) keeping.
    """
    if LARGE_PAGES.exists():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    tuned |= any(f"MALLOC_{name}" in os.environ for name in SETTINGS)
    if platform.libc_ver()[0] == "glibc" and not tuned:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(TRIM_THRESHOLD, -1)  # never
        libc.mallopt(MMAP_MAX, 0)  # a block of its own would go back as soon as it is free
