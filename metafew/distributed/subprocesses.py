"""Start runs in subprocesses, and forward signals to them. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, TextIO

from hydra.core.hydra_config import HydraConfig

from metafew.config.compose import MAIN
from metafew.config.groups import CONF, searched
from metafew.config.overrides import verbatim
from metafew.config.paths import typed_in
from metafew.config.quoting import override
from metafew.distributed.threads import VARIABLE
from metafew.errors import UsageError
from metafew.io import read_json, set_results_aside
from metafew.signals import ENDING, OF_SCHEDULERS

PROGRAM = ["-m", "metafew"]
TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that a signal stopped."""


def start_subprocess(overrides: list[str], log: TextIO | None = None, threads: str | None = None) -> subprocess.Popen:
    """Start one run.

    Args:
        overrides: its command line.
        log: file for its output; None for the output of this process.
        threads: its ``OMP_NUM_THREADS``; None for that of this process.
    """
    # The subprocess imports the same package from any working directory.
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parents[2])]))
    environment = os.environ | {"PYTHONPATH": path}
    if threads:
        environment[VARIABLE] = threads
    command = [sys.executable, *PROGRAM, *overrides]
    return subprocess.Popen(command, stdout=log, stderr=log and subprocess.STDOUT, env=environment)


@contextmanager
def forward_signals(children: Collection[subprocess.Popen]) -> Iterator[list[int]]:
    """Forward SIGTERM and, as ``sbatch --signal`` sends them, SIGUSR1 and SIGUSR2; ignore Ctrl-C, which reaches all.

    Only the main thread of a program can handle signals: in any other, nothing is forwarded.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        if number != signal.SIGINT:
            for child in list(children):
                child.send_signal(number)

    numbers: list[int] = []
    if threading.current_thread() is threading.main_thread():  # submitit has handlers for some, which requeue its job
        of_others = [number for number in OF_SCHEDULERS if signal.getsignal(number) != signal.SIG_DFL]
        numbers = [number for number in ENDING if number not in of_others]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_subprocess(overrides: list[str]) -> int:
    """Run one command, wait for its end and return its exit code, which is ``TERMINATED`` after a signal."""
    children: list[subprocess.Popen] = []
    with forward_signals(children) as received:
        child = start_subprocess(overrides)
        early = [number for number in received if number != signal.SIGINT]
        children.append(child)
        for number in early:
            child.send_signal(number)
        code = child.wait()
    return TERMINATED if received else code


def main_configuration() -> list[str]:
    """Return the flags that make a subprocess use the main configuration of this process."""
    hydra = HydraConfig.get()
    flags = ["--config-name", str(hydra.job.config_name)]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
        elif source.provider == "main":
            flags += ["--config-path", source.path]
    return flags


def options_of_launch() -> list[str]:
    """Return the flags and words with which a run finds the options that this process finds; none for metafew's own."""
    flags, words = main_configuration(), verbatim(HydraConfig.get().overrides.hydra)
    own = ["--config-name", MAIN, "--config-path", str(CONF)]
    return [*(flags if flags != own else []), *searched(words)]


def run_cell(out: Path) -> None:
    """Run a cell of a sweep with several ranks in a subprocess, from which Lightning launches the other ranks.

    Lightning repeats the command line of its process in each rank, which here would be that of the complete sweep, and
    leaves behind a process group that the next cell would join.

    Args:
        out: folder of the cell.

    Raises:
        UsageError: if the launcher is joblib, or the cell failed without an error message.
    """
    hydra = HydraConfig.get()
    if hydra.runtime.choices["hydra/launcher"] == "joblib":
        raise UsageError(
            "expected runs of one process with hydra/launcher=joblib, got one of several: type trainer.devices=1, "
            "or leave out hydra/launcher=joblib"
        )
    set_results_aside(out)
    (out / "results.json").unlink(missing_ok=True)
    folders = ["hydra.mode=RUN", override("hydra.run.dir", out), "hydra.output_subdir=null"]
    folders.append(override("hydra.sweep.dir", typed_in() / hydra.sweep.dir))
    words = [*verbatim(hydra.overrides.hydra), *verbatim(hydra.overrides.task)]
    with chdir(typed_in()):
        code = run_subprocess([*main_configuration(), *words, *folders])
    if code == TERMINATED:
        sys.exit(TERMINATED)
    if code and "error" not in read_json(out / "results.json"):
        raise UsageError(f"the processes of this run ended with exit code {code}: see their output")
