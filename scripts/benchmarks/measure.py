"""Measure the time of calls that take turns, and the memory that a call needs."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peers.problem import Problem, Setting, timed
from rich.progress import track

Call = Callable[[], float]
"""A function that runs once and returns its seconds."""
Rows = dict[str, dict[str, float | str]]
"""A table: the values of each row by column."""
Tables = dict[str, Rows]
"""Tables by title."""
MIB = 2**20
BF16 = ", bf16"
"""End of the titles of rows that are measured with ``trainer.precision=bf16-mixed``."""


@dataclass(frozen=True)
class Bench:
    """How to measure.

    Attributes:
        setting: the sizes of everything.
        rounds: measurements of each row, after a warm-up round.
        device: where the steps run.
        peers: a folder of environments, each with another library, or None.
        variables: the environment variables of the processes of peers; None for those of this process.
        launches: number of times that these processes are started, each for all rounds.
        bf16: whether steps are also measured with ``trainer.precision=bf16-mixed``.
        papers: whether peers are compared in the settings of papers instead; the text that names of these contain.
    """

    setting: Setting
    rounds: int
    device: torch.device
    peers: Path | None = None
    variables: dict[str, str] | None = None
    launches: int = 1
    bf16: bool = False
    papers: str | None = None

    @property
    def precisions(self) -> dict[str, bool]:
        """The precisions to measure: the end of the titles of their rows, and whether it is ``bf16-mixed``."""
        return {"": False} | ({BF16: True} if self.bf16 else {})

    @property
    def problem(self) -> Problem:
        """The setting on the device."""
        return Problem(self.setting, self.device)

    def timed(self, call: Callable[[], object], least: float = 0.0) -> Call:
        """Return ``call`` as one that returns its seconds, averaged over repetitions that take ``least`` together."""
        return lambda: timed(call, self.device, least)[0]

    def measure(self, title: str, calls: dict[str, Call], most: int | None = None) -> Rows:
        """Return the medians of :meth:`rounds_of`."""
        return medians(self.rounds_of(title, calls, most))

    def rounds_of(self, title: str, calls: dict[str, Call], most: int | None = None) -> dict[str, list[float]]:
        """Measure ``calls`` in turns; return the seconds of each, by round.

        Args:
            title: of the progress bar.
            calls: by name.
            most: the largest number of rounds, for slow calls.
        """
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in track(range(1 + min(self.rounds, most or self.rounds)), title, transient=True):
            for name, call in calls.items():
                seconds[name].append(call())
        return {name: values[1:] for name, values in seconds.items()}

    def memory(self, call: Callable[[], object]) -> float:
        """Return the peak growth of memory during ``call`` in MiB: of the GPU, or else of the process."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            torch.cuda.synchronize()
            return (torch.cuda.max_memory_allocated() - before) / MIB
        return growth(call) / MIB


def medians(seconds: dict[str, list[float]]) -> Rows:
    """Return the median in milliseconds of each row, and its ratio to the first."""
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(middle.values()), 1.0)
    return {name: {"ms": 1e3 * median, "ratio": median / first} for name, median in middle.items()}


def growth(call: Callable[[], object]) -> int:
    """Return the peak growth of this process's memory during ``call`` in bytes (Linux only)."""

    def status(which: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))

    ctypes.CDLL(None).malloc_trim(0)  # memory that earlier calls freed would hide the growth
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before = status("VmRSS")
    call()
    return max(0, status("VmHWM") - before)
