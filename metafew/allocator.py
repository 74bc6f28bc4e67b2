"""Memory of a process: huge pages for tensors, reuse of freed memory in the next step, and garbage collection."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Exists where the kernel supports transparent huge pages."""
TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""M_TRIM_THRESHOLD and M_MMAP_MAX of ``mallopt(3)``."""
SETTINGS = ("TRIM_THRESHOLD_", "MMAP_THRESHOLD_", "MMAP_MAX_")
"""Environment variables that, after ``MALLOC_``, configure what malloc does with freed memory."""


def use_huge_pages() -> None:
    """Request huge pages for tensors, and keep freed memory; call it before torch allocates its first tensor.

    Every training step allocates and frees the same hundreds of megabytes. By default, the kernel maps and clears pages
    of 4 KiB in every step, and the TLB of the processor holds only a few of them. With this setting, tensors of 2 MiB
    or more use pages of 2 MiB (torch's own THP_MEM_ALLOC_ENABLE, on Linux), and glibc keeps freed blocks of any size
    for the next step, so that the process stays at its peak size. Results do not change.

    Settings in the environment take precedence: ``THP_MEM_ALLOC_ENABLE=0`` disables huge pages, and
    ``MALLOC_TRIM_THRESHOLD_=131072`` (or another of :data:`SETTINGS`, or ``glibc.malloc`` in ``GLIBC_TUNABLES``) leaves
    freed memory to malloc.
    """
    if HUGE_PAGES.exists():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    configured = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    configured |= any(f"MALLOC_{name}" in os.environ for name in SETTINGS)
    if platform.libc_ver()[0] == "glibc" and not configured:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(TRIM_THRESHOLD, -1)  # never return freed memory at the top of the heap
        libc.mallopt(MMAP_MAX, 0)  # separately mapped blocks return to the kernel as soon as they are freed


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause garbage collection while packages are imported: it would scan all that they define again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
