"""An experiment: a published table whose cells are ordinary runs, in processes of their own.

This module imports no torch: only the cells need it.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from metafew.analysis.sheets import sheets
from metafew.cli import groups
from metafew.errors import UsageError
from metafew.files import read_json, write_json
from metafew.overrides import merge
from metafew.processes import ENDED, PROGRAM, start


@dataclass(frozen=True)
class Cell:
    """One row of one panel.

    Args:
        name: panel and row, with a slash between.
        folder: what its commands leave behind, and their output in log.txt.
        commands: the words of each command by the folder of its results, in order.
    """

    name: str
    folder: Path
    commands: dict[Path, list[str]]

    def waiting(self) -> dict[Path, list[str]]:
        """Return the commands that are left, from the first on that has not succeeded with these very words."""
        for number, folder in enumerate(self.commands):
            same = read_json(folder / "words.json") == self.history(folder)
            if not same or "metrics" not in read_json(folder / "results.json"):
                return dict(list(self.commands.items())[number:])
        return {}

    def other(self) -> bool:
        """Tell whether some command succeeded before with other words."""
        return any(read_json(folder / "words.json") not in ({}, self.history(folder)) for folder in self.commands)

    def history(self, folder: Path) -> dict:
        """Return the words that the results in ``folder`` rest on: of their command, and of those before it."""
        number = list(self.commands).index(folder)
        return {"words": list(self.commands.values())[: number + 1]}

    def run(self) -> None:
        """Carry out the commands that are left, until one fails."""
        waiting = self.waiting()
        for folder in waiting:  # what is interrupted must not pass for finished
            (folder / "words.json").unlink(missing_ok=True)
            (folder / "results.json").unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.txt").open("w" if waiting == self.commands else "a") as log:
            for folder, words in waiting.items():
                code = start(words, log)
                if code == ENDED:
                    raise KeyboardInterrupt
                if code:
                    if "error" not in read_json(folder / "results.json"):
                        sentence = f"it ended with exit code {code}: see {log.name}"
                        write_json(folder / "results.json", {"error": sentence})
                    return
                write_json(folder / "words.json", self.history(folder))

    def report(self, columns: dict[str, str]) -> dict:
        """Return what stands in the results.json of the experiment: an error, or the measures of ``columns``."""
        words = list(self.commands.values())
        reports = [read_json(folder / "results.json") for folder in self.commands]
        for report in reports:
            if "error" in report:
                return {"words": words, "error": report["error"]}
        last = reports[-1]
        return {
            "words": words,
            "metrics": {name: last["metrics"][path] for name, path in columns.items() if path in last["metrics"]},
            "seconds": round(sum(sum(report["seconds"].values()) for report in reports), 2),
            "chosen": last["chosen"],
            "transductive": last["transductive"],
        }


def plan(experiment: dict, typed: list[str], out: Path) -> list[Cell]:
    """Return the cells; what the user typed wins in every command."""
    known, cells = groups(), []
    for name, own in experiment["cells"].items():
        folder = out / "cells" / name
        words = merge(merge(experiment["settings"], own, known), typed, known)
        commands = {folder: [*words, f"hydra.run.dir={folder}"]}
        if "test" in experiment:
            fit, test = folder / "fit", folder / "test"
            ckpt = fit / "checkpoints" / "last.ckpt"
            tests = merge(experiment["test"], typed, known)
            commands = {
                fit: [*words, "stages=[fit]", f"hydra.run.dir={fit}"],
                test: ["stages=[test]", f"ckpt={ckpt}", *tests, f"hydra.run.dir={test}"],
            }
        cells.append(Cell(name, folder, commands))
    return cells


def conduct(experiment: dict, typed: list[str], out: Path) -> int:
    """Run the cells that are not finished, and print the table and leave it in ``out``.

    A cell that fails does not stop the others. After every cell results.json holds all of them so far.

    Args:
        experiment: what stands below ``experiment`` in the YAML.
        typed: what was typed beside the experiment, for every cell.
        out: folder for results.json, table.md, and the cells.

    Returns:
        The exit code: 0, 1 where a cell failed, 130 after an interruption.

    Raises:
        UsageError: ``out`` holds results of other words, which are not to be lost.
    """
    console = Console()
    if typed:  # this is another table than the one that the YAML describes
        experiment = experiment | {"title": f"{experiment['title']}, with {' '.join(typed)}"}
    cells = plan(experiment, typed, out)
    if others := [cell.folder for cell in cells if cell.other()]:
        raise UsageError(
            f"{out} holds results of an experiment with other words than these, such as {others[0]}: "
            f"type hydra.run.dir={out}_2, or delete what is to be done anew"
        )
    waiting = [cell.name for cell in cells if cell.waiting()]
    begin, ran, reports = time.monotonic(), 0, {}
    try:
        for number, cell in enumerate(cells, 1):
            place = f"{number}/{len(cells)} {cell.name}"
            if cell.name in waiting:
                line = f"{place}: {clock(time.monotonic() - begin, ran, len(waiting) - ran)}"
                commands = [shlex.join(["python", *PROGRAM, *words]) for words in cell.waiting().values()]
                say(console, "\n  ".join([line, *commands]))
                cell.run()
                ran += 1
            else:
                say(console, f"{place}: finished before")
            reports[cell.name] = cell.report(experiment["columns"])
            write_json(out / "results.json", {"title": experiment["title"], "cells": reports})
    except KeyboardInterrupt:
        sentence = f"interrupted, and what is finished stays in {out}: type the same command to go on from there"
        print(f"metafew: {sentence}", file=sys.stderr)
        return 130
    tables = list(sheets(experiment, reports))
    (out / "table.md").write_text("\n".join(table.markdown() for table in tables))
    for table in tables:
        console.print(table.rich())
        say(console, "\n".join([*table.notes, ""]))
    print(f"the table, results and checkpoints are in {out}")
    return int(any("error" in report for report in reports.values()))


def clock(seconds: float, ran: int, left: int) -> str:
    """Return the minutes so far, and those that ``left`` cells will take if they are like those that ran.

    >>> clock(0, 0, 10), clock(600, 4, 6)
    ('0 min so far', '10 min so far, about 15 min left')
    """
    estimate = f", about {seconds / ran * left / 60:.0f} min left" if ran else ""
    return f"{seconds / 60:.0f} min so far{estimate}"


def say(console: Console, text: str) -> None:
    """Print ``text`` as it is: the brackets of a list are no markup, and a command stays one line to copy."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
