"""Compare runs: tables with intervals, differences on the same tasks, ranks, and published figures.

  metafew report RUNS... [out=DIR] [rows=KEYS] [columns=KEYS] [against="WORDS"] [spread=se]

RUNS are folders of runs or sweeps, or folders above them, results.json files, or patterns such as 'outputs/2026-*'.
Runs that differ only in seed share a row. rows=head columns=norm makes a table with a row for each head and a column
for each norm. Each row is compared with the best of its column, or with the row given by WORDS, such as
against="head=protonet norm=batch". spread=se prints standard errors instead of 95 % intervals. DIR (default report)
receives table.md, table.tex, table.csv with full precision, heads.csv if runs have several heads, runs.csv with one
line per run and measure, figures as PNG and SVG, and a self-contained index.html; they replace an earlier report. For
runs with stages=[analyze], tested or not, the figures show their analyses side by side.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from metafew.analysis.compare.find import find_runs
from metafew.analysis.compare.report import make_report
from metafew.commands.command_line import own_options, run_command
from metafew.errors import UsageError

DEFAULTS: dict[str, Any] = {"out": "report", "rows": None, "columns": None, "against": None, "spread": "ci95"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(report, arguments, __doc__)


def report(arguments: Sequence[str]) -> None:
    """Write the report and print its tables."""
    options, places = own_options(arguments, DEFAULTS)
    if options["spread"] not in ("ci95", "se"):
        raise UsageError(f"expected spread to be ci95 or se, got {options['spread']}: type spread=se")
    if not places:
        raise UsageError(
            f"expected folders of runs or results.json files, got {' '.join(arguments)}: type outputs or multirun"
        )
    command = shlex.join(["metafew", "report", *arguments])
    folder = Path(options.pop("out"))
    replaced = " (in place of an earlier report)" * (folder / "index.html").is_file()
    made = make_report(*find_runs(places), folder, command, **options)
    console = Console()
    for table in made.tables:
        for part in table.fitting(console.width):
            console.print(part.rich())
            print("\n".join([*part.notes, ""]))
    for place, reason in made.omitted:
        print(f"left out: {place}: {reason}")
    compared = "1 run is" if made.runs == 1 else f"{made.runs} runs are"
    print(f"{compared} compared in {folder}{replaced}: {', '.join(made.files[:-1])} and {made.files[-1]}")
