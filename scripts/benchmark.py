"""Measure times as ratios within one run: python scripts/benchmark.py [SECTION ...] [--rounds N] [--threads N].

The rows of a table are measured in turn, and each shows its median over rounds; the first round is a warm-up. Run it on
an otherwise idle machine. Without arguments, it takes less than ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from benchmarks.measure import Bench, Rows
from benchmarks.papers import PEERS
from peers.problem import Setting
from rich.console import Console
from rich.table import Column, Table

from metafew.allocator import use_huge_pages
from metafew.io import write_json

SECTIONS = {
    "steps": "a training step of every head with norm=batch and norm=tasknorm, relative to only the backbone; memory",
    "peers": "the same steps by a plain loop like that of the papers' code and, with --peers DIR, by other libraries",
    "inner": "training and test of heads that adapt, under every head.inner, and how the choice of auto compares",
    "solvers": "only the SVM, ridge and logistic solvers, forward and backward; with --peers DIR also qpth's",
    "norms": "each normalization layer, forward and backward, relative to torch.nn.BatchNorm2d on the same tensor",
    "loader": "drawing a meta-batch from its store, relative to the step that consumes it; memory",
    "evaluation": "one command that tests a prototypical network on 1,000 tasks, embedding images once or per task",
    "startup": "the processes train.py --help, and train.py for one training step",
    "scaling": "a step per task and per image, and the memory of MAML, for growing numbers of tasks and classes",
}
"""Each section is a module of benchmarks, with a function ``tables``."""
WIDE = Setting(backbone="resnet12", channels=3, size=84, tasks=2, heads=("protonet", "maml"))
FULL = {"steps": WIDE, "peers": WIDE, "evaluation": Setting(test_tasks=10_000)}
"""What --full adds to each section."""


def main(arguments: list[str] | None = None, setting: Setting = Setting()) -> None:  # noqa: B008, a frozen dataclass
    """Measure the sections, print their tables and write a JSON file."""
    options = parse(arguments)
    untouched = dict(os.environ)
    use_huge_pages()  # as in train.py
    from metafew.evaluation.results import versions

    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device, threads = torch.device(options.device), torch.get_num_threads()
    variations = {"launches": options.launches, "bf16": options.bf16, "papers": options.papers}
    bench = Bench(setting, options.rounds, device, options.peers, untouched, **variations)
    report: dict = {"device": device_name(device), "threads": threads, "versions": versions()}
    report |= {"rounds": options.rounds, "launches": options.launches}
    for section in options.sections or SECTIONS:
        tables = import_module(f"benchmarks.{section}").tables
        measured = tables(bench)
        if options.full and section in FULL:
            measured |= tables(replace(bench, setting=FULL[section], rounds=min(3, bench.rounds)))
        for title, rows in measured.items():
            Console().print(rich_table(f"{title}, {threads} threads", rows))
        report[section] = measured
        write_json(options.out, report)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line; None takes that of the process."""
    about, _, rest = __doc__.partition("\n\n")
    lines = [f"  {word:12}{what}" for word, what in SECTIONS.items()]
    parser = argparse.ArgumentParser(
        prog="python scripts/benchmark.py",
        description=about.partition(":")[0] + ".",
        epilog="\n".join(["sections:", *lines, "", rest]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; default all")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of measurements (default 9)")
    parser.add_argument("--launches", type=int, default=1, help="times that peers are started (default 1)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="environments of scripts/make_peers.py to measure too"
    )
    parser.add_argument(
        "--papers", nargs="?", const="", metavar="TEXT", help="peers in the settings of papers, whose names have TEXT"
    )
    parser.add_argument("--bf16", action="store_true", help="steps and inner also with trainer.precision=bf16-mixed")
    parser.add_argument(
        "--full", action="store_true", help="also 84x84 colour images with resnet12, and 10,000 test tasks (slow)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark.json"), help="the file to write (default benchmark.json)"
    )
    options = parser.parse_args(arguments)
    if unknown := [word for word in options.sections if word not in SECTIONS]:
        parser.error(f"expected sections, got {', '.join(unknown)}: type {' or '.join(SECTIONS)}")
    if options.papers is not None and not any(options.papers.lower() in name.lower() for name in PEERS):
        parser.error(f"expected part of {', '.join(PEERS)} for --papers, got {options.papers}: type --papers Omniglot")
    for option, default in {"rounds": 9, "launches": 1}.items():
        if (number := getattr(options, option)) < 1:
            parser.error(f"expected --{option} to be at least 1, got {number}: type --{option} {default}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"expected a GPU for --device {options.device}, got none: type --device cpu")
    return options


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def rich_table(title: str, rows: Rows) -> Table:
    """Return a table, with empty cells for missing columns of a row."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table(Column(no_wrap=True), *columns, title=title)
    for word, row in rows.items():
        table.add_row(word, *(four_digits(row.get(key, "")) for key in columns))
    return table


def four_digits(value: float | str) -> str:
    """Format a number with four significant digits."""
    return value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    main()
