"""Reproduce the published tables and figures that are not finished yet, and write the page of results.

  metafew reproduce all [out=DIR] [overrides for each of them]
  metafew reproduce NAMES... [out=DIR] [overrides for each of them]
  metafew reproduce page

NAMES are experiments. Overrides, such as seeds=[0,1,2], budget=paper, jobs=4 or data_dir=PATH, apply to each of them.
DIR (default outputs) receives one folder per experiment, and cells/, which keeps finished runs: repeating the command
resumes it. Results are copied to docs/results and figures to docs/pictures, and docs/reproduction.md is generated from
them, including what was finished before an interruption; page only generates docs/reproduction.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from metafew.commands.command_line import check_out, own_options, run_command
from metafew.config.groups import options_of
from metafew.config.quoting import override
from metafew.distributed.subprocesses import TERMINATED, run_subprocess
from metafew.errors import UsageError
from metafew.experiments.page import reproduction_page, results_file
from metafew.io import atomic_write, read_json

REFUSED = 2
"""Exit code of an experiment that did not run; its folder contains the results of an earlier command."""


def main(arguments: Sequence[str] | None = None, docs: Path = Path("docs")) -> int:
    """Run the command, write its page to ``docs``, and return the exit code."""
    return run_command(partial(reproduce, docs=docs), arguments, __doc__)


def reproduce(arguments: Sequence[str], docs: Path) -> None:
    """Run the experiments and write the page."""
    failed = [] if list(arguments) == ["page"] else run_experiments(arguments, docs)
    write_page(docs)
    if failed:
        raise UsageError(
            f"some runs of {' and '.join(failed)} failed, for the reason above: type the same command to try again"
        )


def run_experiments(arguments: Sequence[str], docs: Path) -> list[str]:
    """Run each experiment of the command line, keep its results, and return the names of those that failed."""
    options, words = own_options(arguments, {"out": "outputs"})
    check_out(words)
    overrides, names = [word for word in words if "=" in word], [word for word in words if "=" not in word]
    out = Path(options["out"])
    known = options_of("experiment")
    names = known if names == ["all"] else names
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"expected an experiment of {', '.join(known)}, got {unknown[0]}: type {known[0]}")
    if not names:
        raise UsageError(f"expected an experiment, got {' '.join(arguments)}: type all, or tasknorm_maml")
    failed = []
    for number, name in enumerate(names, 1):
        print(f"{number}/{len(names)} {name}", flush=True)
        folder = out / name
        cells, place = override("cells", out / "cells"), override("hydra.run.dir", folder)
        code = run_subprocess([f"experiment={name}", cells, *overrides, place])  # of several cells=, the last counts
        if code != REFUSED:
            keep_results(name, folder, docs)
        if code in (TERMINATED, 130):
            write_page(docs)
            raise UsageError("interrupted; finished runs are kept: type the same command to resume")
        if code:
            failed.append(name)
    return failed


def write_page(docs: Path) -> None:
    """Write reproduction.md from the results in ``docs``."""
    docs.mkdir(exist_ok=True)
    with atomic_write(docs / "reproduction.md") as file:
        file.write(reproduction_page(docs / "results"))
    print(f"the page is {docs / 'reproduction.md'}")


def keep_results(name: str, folder: Path, docs: Path) -> None:
    """Copy the results and figures of one experiment to ``docs``."""
    report = read_json(folder / "results.json")
    if "rows" not in report:
        return
    for place in (docs / "results", docs / "pictures"):
        place.mkdir(parents=True, exist_ok=True)
    file = results_file(docs / "results", name, report["budget"])
    shutil.copyfile(folder / "results.json", file)
    for figure in report["figures"]:
        drawn = Image.open(folder / f"{figure}.png").convert("RGB").quantize(256)  # a third of the size
        drawn.save(docs / "pictures" / f"{file.stem}_{figure}.png", optimize=True)
