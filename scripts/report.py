"""Compare runs: tables with intervals, differences on the same tasks, ranks, and published figures.

  python scripts/report.py RUNS... [out=DIR] [against="WORDS"] [spread=se]

RUNS are folders of runs, sweeps or anything above them, results.json files, or patterns such as 'outputs/2026-*'. Runs
that are equal but for seed are one row. Rows are compared with the best of each column, or with the row that WORDS
name, such as against="head=protonet norm=batch". spread=se prints standard errors in place of 95 % intervals. DIR
(default report) gets table.md, table.tex, table.csv with all digits, figures as PNG and SVG, and index.html, which
needs nothing beside it. Of runs with stages=[analyze], tested or not, the figures show their analyses side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from metafew.analysis.compare.comparison import compare
from metafew.analysis.compare.report import sheets, write
from metafew.analysis.compare.runs import find
from metafew.errors import UsageError, carry_out

OPTIONS = ("out", "against", "spread")
WIDTH = 15  # letters of an accuracy with its interval, in a terminal


def report(typed: Sequence[str]) -> None:
    """Do what the command line says."""
    options = {"out": "report", "against": None, "spread": "ci95"}
    pairs = [word.split("=", 1) for word in typed if word.startswith(tuple(f"{name}=" for name in OPTIONS))]
    options |= dict(pairs)
    places = [word for word in typed if word.split("=", 1) not in pairs]
    if options["spread"] not in ("ci95", "se"):
        raise UsageError(f"spread is ci95 or se, not {options['spread']}: type spread=se")
    if not places:
        raise UsageError("RUNS wants folders or results.json files, and none is typed: type outputs or multirun")
    runs, omitted = find(places)
    table = compare([run for run in runs if run.heads], options["against"])
    several = sheets(table, options["against"], options["spread"]) if table.rows else []
    files, omitted = write(Path(options["out"]), table, several, runs, omitted)
    console = Console()
    for sheet in several:
        if WIDTH * len(sheet.columns) > console.width:
            print(f"{sheet.title}: {len(sheet.columns)} columns are too wide for this terminal and stand in the files")
        else:
            console.print(sheet.rich())
        print("\n".join([*sheet.notes, ""]))
    for place, reason in omitted:
        print(f"left out: {place}: {reason}")
    print(f"{len(runs)} runs are compared in {options['out']}: {', '.join(files[:-1])} and {files[-1]}")


def main(typed: Sequence[str]) -> int:
    """Carry out what is typed, and return the exit code."""
    return carry_out(report, typed, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
