"""The files of a report. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from metafew.analysis.compare.comparison import Comparison, compare_runs
from metafew.analysis.compare.comparison_plots import draw_comparison
from metafew.analysis.compare.csv_files import write_cells, write_runs
from metafew.analysis.compare.heads_as_rows import heads_as_rows
from metafew.analysis.compare.html_page import report_sections
from metafew.analysis.compare.runs import Omitted, Run
from metafew.analysis.compare.tables import arrange, report_tables
from metafew.analysis.html_document import document
from metafew.analysis.text_table import TextTable
from metafew.errors import UsageError

TABLES = ("table.md", "table.tex", "table.csv", "runs.csv")
HEADS = "heads.csv"


class Report(NamedTuple):
    """A report that was written.

    Attributes:
        tables: its tables.
        files: the names of its files.
        runs: the number of runs.
        omitted: folders and files without a finished run, and figures that were not drawn.
    """

    tables: list[TextTable]
    files: list[str]
    runs: int
    omitted: list[Omitted]


def make_report(
    runs: Sequence[Run],
    omitted: Sequence[Omitted],
    folder: Path,
    command: str,
    rows: str | None = None,
    columns: str | None = None,
    against: str | None = None,
    spread: str = "ci95",
) -> Report:
    """Compare runs, and write the report.

    Args:
        runs: finished runs, from :func:`~metafew.analysis.compare.find.find_runs`.
        omitted: folders and files without one.
        folder: the folder to write.
        command: the command of the report.
        rows: settings that are rows, as for :func:`~metafew.analysis.compare.tables.arrange`.
        columns: settings that are columns.
        against: overrides that identify the row to which differences are taken.
        spread: ``"ci95"``, or ``"se"`` for standard errors.

    Raises:
        UsageError: as raised by these functions and by :func:`write_report`.
    """
    comparison = compare_runs([run for run in runs if run.heads], against)
    arrangement = arrange(comparison, rows, columns)
    tables = report_tables(comparison, against, spread, arrangement) if comparison.rows else []
    files, omitted = write_report(folder, comparison, tables, runs, omitted, command)
    return Report(tables, files, len(runs), omitted)


def write_report(
    folder: Path,
    comparison: Comparison,
    tables: Sequence[TextTable],
    runs: Sequence[Run],
    omitted: Sequence[Omitted],
    command: str,
) -> tuple[list[str], list[Omitted]]:
    """Write the :data:`TABLES` of tested runs, :data:`HEADS` for several heads, figures of all runs, and index.html.

    Args:
        folder: the folder to write.
        comparison: the tested runs.
        tables: the tables of the comparison.
        runs: all runs, tested or analyzed.
        omitted: folders and files without a finished run.
        command: the command of the report.

    Returns:
        The names of the files, and all omissions, including figures.

    Raises:
        UsageError: if the folder cannot be written, or there is nothing to write.
    """
    heads = heads_as_rows(comparison)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*TABLES, HEADS):  # those of an earlier report
            (folder / name).unlink(missing_ok=True)
        figures, undrawn = draw_comparison(comparison, runs, folder)
        omitted = [*omitted, *undrawn]
        if not tables and not figures:
            reason = undrawn[0].reason if undrawn else "the figures of a single analyzed run are in its own folder"
            raise UsageError(
                f"expected runs that were tested, or several analyzed ones, got {len(runs)} that were only analyzed "
                f"({reason}): add others, or type stages=[test,analyze]"
            )
        if tables:
            write_tables(folder, tables, omitted)
            write_cells(folder / "table.csv", comparison)
            if heads:
                measured = {key: cell for key, cell in heads.cells.items() if not key[1].baseline}
                write_cells(folder / HEADS, replace(heads, cells=measured))
            write_runs(folder / "runs.csv", [run for run in runs if run.heads])
        commands = [each.command for run in runs for each in (run, *run.merged)]
        sections = report_sections(tables, comparison, figures, omitted, commands)
        page = document("Runs compared", f"{len(runs)} run{'s' * (len(runs) > 1)}", command, sections)
        (folder / "index.html").write_text(page, "utf-8")
    except OSError as error:
        raise UsageError(f"expected a folder that can be written, got {folder} ({error}): type out=DIR") from error
    written = [*TABLES] * bool(tables) + [HEADS] * bool(heads)
    return [*written, *(file.name for file in figures.values()), "index.html"], omitted


def write_tables(folder: Path, tables: Sequence[TextTable], omitted: Sequence[Omitted]) -> None:
    """Write table.md and table.tex."""
    left_out = [f"- {place}: {reason}" for place, reason in omitted]
    listed = ["## Left out", "", *left_out, ""] if left_out else []
    (folder / "table.md").write_text("\n".join([*(table.markdown() for table in tables), *listed]), "utf-8")
    latex = ["% \\usepackage{booktabs}", *(table.latex() for table in tables)]
    (folder / "table.tex").write_text("\n".join(latex), "utf-8")
