"""How long things take, as ratios within one run: python scripts/benchmark.py [SECTION ...] [--rounds N] [--threads N].

The rows of a table take turns, and the median over the rounds is shown; the first round warms up. Run it on an
otherwise idle machine; without arguments it takes less than ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from benchmarks.measure import Bench, Rows
from peers.problem import Setting
from rich.console import Console
from rich.table import Column, Table

from metafew.allocator import use_huge_pages
from metafew.io import write_json

SECTIONS = {
    "steps": "a training step of every head with norm=batch and norm=tasknorm, against the backbone alone; memory",
    "peers": "the same steps by a plain loop as the papers' code writes it and, with --peers DIR, by other libraries",
    "solvers": "the SVM, ridge and logistic solvers alone, forward and backward; with --peers DIR qpth's too",
    "norms": "each normalization layer, forward and backward, against torch.nn.BatchNorm2d on the same tensor",
    "loader": "a meta-batch out of its store, against the step that consumes it; memory",
    "evaluation": "1,000 test tasks by a prototypical network, as one command: images embedded once, or for every task",
    "startup": "train.py --help, and train.py for one training step, as whole processes",
    "scaling": "a step per task and per image, and the memory of MAML, as tasks and classes grow in number",
}
"""Each is a module of benchmarks, with a function ``tables``."""
WIDE = Setting(backbone="resnet12", channels=3, size=84, tasks=2, heads=("protonet", "maml"))
FULL = {"steps": WIDE, "peers": WIDE, "evaluation": Setting(test_tasks=10_000)}
"""What --full adds to each section."""


def main(typed: list[str] | None = None, setting: Setting = Setting()) -> None:  # noqa: B008, it is frozen
    """Measure what was asked for, print the tables and write a JSON file."""
    arguments = parse(typed)
    untouched = dict(os.environ)
    use_huge_pages()  # as train.py does
    from metafew.evaluation.results import versions

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device, threads = torch.device(arguments.device), torch.get_num_threads()
    bench = Bench(setting, arguments.rounds, device, arguments.peers, untouched, arguments.launches)
    report: dict = {"device": name(device), "threads": threads, "versions": versions()}
    report |= {"rounds": arguments.rounds, "launches": arguments.launches}
    for section in arguments.sections or SECTIONS:
        tables = import_module(f"benchmarks.{section}").tables
        found = tables(bench)
        if arguments.full and section in FULL:
            found |= tables(replace(bench, setting=FULL[section], rounds=min(3, bench.rounds)))
        for title, rows in found.items():
            Console().print(draw(f"{title}, {threads} threads", rows))
        report[section] = found
        write_json(arguments.out, report)


def parse(typed: list[str] | None) -> argparse.Namespace:
    """Return what was typed."""
    about, _, rest = __doc__.partition("\n\n")
    lines = [f"  {word:12}{what}" for word, what in SECTIONS.items()]
    parser = argparse.ArgumentParser(
        prog="python scripts/benchmark.py",
        description=about.partition(":")[0] + ".",
        epilog="\n".join(["sections:", *lines, "", rest]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; default all")
    parser.add_argument("--rounds", type=int, default=9, help="times that each row is measured (default 9)")
    parser.add_argument("--launches", type=int, default=1, help="times that peers are started anew (default 1)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch decides)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--peers", type=Path, metavar="DIR", help="environments of scripts/make_peers.py, to be measured too"
    )
    parser.add_argument(
        "--full", action="store_true", help="also 84x84 colour images with resnet12, and 10,000 test tasks (takes long)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmark.json"), help="the file to write (default benchmark.json)"
    )
    arguments = parser.parse_args(typed)
    if unknown := [word for word in arguments.sections if word not in SECTIONS]:
        parser.error(f"{', '.join(unknown)} cannot be measured: type {' or '.join(SECTIONS)}")
    for word, usual in {"rounds": 9, "launches": 1}.items():
        if (typed_number := getattr(arguments, word)) < 1:
            parser.error(f"--{word} is at least 1, not {typed_number}: type --{word} {usual}")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU is at hand for --device cuda: leave it out")
    return arguments


def name(device: torch.device) -> str:
    """Return what a device is called."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def draw(title: str, rows: Rows) -> Table:
    """Return a table; what a row does not have stays empty."""
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    table = Table(Column(no_wrap=True), *columns, title=title)
    for word, row in rows.items():
        table.add_row(word, *(shown(row.get(key, "")) for key in columns))
    return table


def shown(value: float | str) -> str:
    """Return a value with four digits."""
    return value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    main()
