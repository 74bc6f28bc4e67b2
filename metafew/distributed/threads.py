"""Divide the cores among processes that run at the same time. Imports no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "OMP_NUM_THREADS"
"""The environment variable from which torch takes the number of threads of a process."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""The CPU quota of a container: microseconds of CPU time, or ``max``, and the period in microseconds."""


def usable_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    limit, _, period = QUOTA.read_text(encoding="ascii").partition(" ") if QUOTA.exists() else ("max", "", "")
    return cores if limit == "max" else max(1, min(cores, round(int(limit) / int(period))))


def threads_of_each(processes: int) -> str:
    """Return ``OMP_NUM_THREADS`` of each of several processes: the user's, or a share of the cores.

    Processes with more threads than cores wait for one another in every operation: on two cores, a step can take 18
    times as long in each of two processes with two threads as in a single one.
    """
    return os.environ.get(VARIABLE) or str(max(1, usable_cores() // processes))


def share_cores(jobs: int) -> None:
    """Set and print the threads of each run of a sweep with ``hydra/launcher=joblib``.

    Its processes inherit the environment variable.

    Args:
        jobs: ``hydra.launcher.n_jobs``; negative numbers count from the number of cores, as in joblib.
    """
    processes = jobs if jobs > 0 else usable_cores() + 1 + jobs
    if processes > 1:
        os.environ[VARIABLE] = threads_of_each(processes)
        print(f"{processes} runs at a time, each with {VARIABLE}={os.environ[VARIABLE]}")
