"""The memory that a function takes, in a copy of this process."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from runs import Copy

MEASURABLE = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc"
)


def memory(which: str) -> int:
    """Return an entry of ``/proc/self/status``, in kB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(which))


def grown(function: Callable[[], object]) -> int:
    """Return the kB by which the memory of a copy of this process grows at most while it calls ``function``."""

    def measure():
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process keeps would be used again
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = memory("VmRSS")
        function()
        print(memory("VmHWM") - before)

    with TemporaryFile("w+") as result:
        assert Copy(measure, result, 2).wait() == 0
        result.seek(0)
        return int(result.read())
