"""The memory that a function takes, in a process of its own."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

MEASURABLE = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc"
)


def memory(which: str) -> int:
    """Return an entry of ``/proc/self/status``, in kB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(which))


def grown(function: Callable[[], object]) -> int:
    """Return the kB by which the memory of a copy of this process grows at most while it calls ``function``."""
    receive, send = os.pipe()
    if not (pid := os.fork()):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
            before = memory("VmRSS")
            function()
            os.write(send, str(memory("VmHWM") - before).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    os.close(send)
    with os.fdopen(receive) as result:
        kilobytes = result.read()
    assert os.waitpid(pid, 0)[1] == 0
    return int(kilobytes)
