"""Run steps of metafew, of a plain loop and of other libraries, each in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.measure import Bench, Call

OWN = "metafew"
HERE = (OWN, "plain", "plain-in-large-pages")
"""Peers that run in the environment of this process."""
PEERS = (*HERE, "torchopt", "higher", "torchcross", "iteryne", "parallel-metalearn", "meta-learning-toolkit", "qpth")


class Failure(Exception):
    """A peer could not take a step; the message is the reason."""


class Worker:
    """A process that takes one step of a peer on request (peers/worker.py).

    Args:
        name: name of the peer, and of its folder in ``bench.peers``.
        bench: the device, setting and environments.
        dtype: the precision of its steps.
    """

    def __init__(self, name: str, bench: Bench, dtype: str = "float32"):
        python = Path(sys.executable) if name in HERE else bench.peers.resolve() / name / "bin" / "python"
        self.title, self.steps, self.error = name, [], ""
        self.process = None
        if not python.exists():
            self.error = f"not installed: python scripts/make_peers.py {bench.peers} {name}"
            return
        self.process = subprocess.Popen(
            [python, "-m", "peers.worker", name],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=bench.variables,
        )
        threads = torch.get_num_threads()
        start = {"setting": asdict(bench.setting), "device": str(bench.device), "dtype": dtype, "threads": threads}
        try:
            reply = self.ask(start)
            self.title, self.steps = reply["title"], reply["steps"]
        except Failure as failure:
            self.error = str(failure)

    def ask(self, request: dict | str) -> dict:
        """Send a request and return its reply."""
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failure(f"its process ended with code {self.process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise Failure(reply["error"])
        return reply

    def take(self, step: str) -> dict:
        """Take a step and return its seconds, value and gradient."""
        if self.error:
            raise Failure(self.error)
        return self.ask(step)

    def timed(self, step: str) -> Call:
        """Return a call that takes a step and returns its seconds, without those of the request."""
        return lambda: self.take(step)["seconds"]

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()


@contextmanager
def launched(bench: Bench, names: Sequence[str] = PEERS, dtype: str = "float32") -> Iterator[dict[str, Worker]]:
    """Start processes, and end them on exit; other libraries require a folder of environments."""
    workers = {name: Worker(name, bench, dtype) for name in names if bench.peers or name in HERE}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()
