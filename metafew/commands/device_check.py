"""Check a GPU: its steps against those of the CPU, the tests that need one, and the benchmark, in ten minutes.

  python scripts/device_check.py --device cuda [--out FILE.json] [--minutes 10] [--quick]

Steps of every head in float32, bfloat16 and float16 are compared with those of the CPU in float32; their time, memory
and how often the host waits are measured. The tests marked gpu, and the sections of scripts/benchmark.py that measure
a device, run in processes of their own. FILE.json (default device_check.json) is written after every row, with what
failed and what there was no time for; the exit code is then 1. --quick checks three heads and one section of the
benchmark; with --device cpu it rehearses the command. It needs a checkout, since a wheel has neither tests nor scripts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from metafew.commands.command_line import run_command
from metafew.config.groups import options_of
from metafew.errors import UsageError
from metafew.io import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("steps", "solvers", "norms", "peers")
"""Sections of the benchmark that measure a device."""
QUICK_HEADS, QUICK_SECTIONS = ("maml", "protonet", "svm"), ("solvers",)
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
LONGEST = 150
"""Maximum run time of a process, in seconds."""
LAST = 2000
"""Characters of a process's output that are kept."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are those of the other commands."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}: type python scripts/device_check.py --help")


class Failed(Exception):
    """Raised when the process of a row fails or takes too long."""


class Report:
    """Rows that are measured one after the other, and written after each.

    Args:
        path: the JSON file.
        seconds: the time for all rows.
    """

    def __init__(self, path: Path, seconds: float):
        self.path, self.begin, self.seconds = path, time.monotonic(), seconds
        self.content: dict[str, Any] = {"complete": False, "failed": [], "not_measured": []}

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self.seconds - (time.monotonic() - self.begin)

    def row(self, group: str, name: str, measure: Callable[[], Any]) -> None:
        """Add what ``measure`` returns, or its error, and write everything."""
        rows = self.content.setdefault(group, {})
        if self.left <= 0:
            self.content["not_measured"].append(f"{group} {name}")
        else:
            begin = time.monotonic()
            try:
                rows[name] = measure()
            except Exception as error:  # the other rows are still useful without this one
                rows[name] = {"error": f"{type(error).__name__}: {error}"[:LAST]}
                self.content["failed"].append(f"{group} {name}")
            print(f"{time.monotonic() - begin:6.1f} s  {group} {name}", flush=True)
        self.write()

    def write(self, complete: bool = False) -> None:
        """Write the file."""
        self.content |= {"complete": complete, "seconds": time.monotonic() - self.begin}
        write_json(self.path, self.content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 1 if a row failed or there was no time for it."""
    codes: list[int] = []
    return run_command(lambda words: codes.append(check(words)), arguments, __doc__) or sum(codes)


def check(arguments: Sequence[str]) -> int:
    """Measure all rows; return 1 if one is missing."""
    options = parse(arguments)
    import torch

    from metafew.commands.device_steps import compare
    from metafew.evaluation.results import versions

    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("expected a GPU, got none: type --device cpu --quick to rehearse")
    report = Report(options.out, 60 * options.minutes)
    report.content |= {"device": describe(device), "versions": versions(), "quick": options.quick}
    for precision in PRECISIONS:
        for head in QUICK_HEADS if options.quick else options_of("head"):
            report.row("steps", f"{head} {precision}", partial(compare, head, device, precision))
    report.row("tests", "gpu", partial(run_tests, report))
    rounds = 1 if options.quick else 3
    for section in QUICK_SECTIONS if options.quick else SECTIONS:
        report.row("benchmark", section, partial(run_benchmark, section, options.device, rounds, report))
    report.write(complete=not report.content["not_measured"])
    missing = report.content["failed"] + report.content["not_measured"]
    print(f"{options.out}: {f'{len(missing)} rows are missing: ' + ', '.join(missing) if missing else 'complete'}")
    return int(bool(missing))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options.

    Raises:
        UsageError: if there is no such option, or this is not a checkout.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("device_check.json"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if options.device.partition(":")[0] not in ("cuda", "cpu"):
        raise UsageError(f"expected --device to be cuda or cpu, got {options.device}: type --device cuda")
    if not options.minutes > 0:
        raise UsageError(f"expected --minutes to be above 0, got {options.minutes:g}: type --minutes 10")
    if not (ROOT / "scripts" / "benchmark.py").is_file():
        raise UsageError(f"expected a checkout of metafew, got an installed package in {ROOT}: type git clone first")
    return options


def describe(device: Any) -> dict[str, Any]:
    """Return the name of a device and, for a GPU, the properties that determine its speed."""
    import torch

    if device.type != "cuda":
        return {"name": str(device), "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "GiB": round(found.total_memory / 2**30, 1),
        "processors": found.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def run_tests(report: Report) -> dict[str, Any]:
    """Run the tests marked ``gpu`` (collecting only files that have some), and return the last line of their report."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").glob("test_*.py"))}
    files = [str(path) for path, text in texts.items() if "mark.gpu" in text]
    output = run_process([sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files], report.left)
    return {"summary": output.strip().splitlines()[-1]}


def run_benchmark(section: str, device: str, rounds: int, report: Report) -> dict[str, Any]:
    """Run a section of the benchmark and return its tables."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "benchmark.json"
        words = [section, "--device", device, "--rounds", str(rounds), "--out", str(out)]
        run_process([sys.executable, str(ROOT / "scripts" / "benchmark.py"), *words], report.left)
        return read_json(out)[section]


def run_process(command: Sequence[str], left: float) -> str:
    """Run a process in the checkout and return its output.

    Raises:
        Failed: if it ends with an error, or takes too long.
    """
    seconds = max(1.0, min(LONGEST, left))
    try:
        done = subprocess.run(
            command, cwd=ROOT, timeout=seconds, text=True, encoding="utf-8", errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Failed(f"it took more than {seconds:.0f} s") from error
    if done.returncode:
        raise Failed(f"exit code {done.returncode}: {done.stdout[-LAST:]}")
    return done.stdout
