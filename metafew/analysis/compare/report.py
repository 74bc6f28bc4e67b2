"""The tables of a comparison of runs, and the files of a report."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from metafew.analysis.compare.comparison import Comparison, Difference, Measurement
from metafew.analysis.compare.comparison_plots import draw_comparison
from metafew.analysis.compare.html_page import html_page
from metafew.analysis.compare.published import published_table
from metafew.analysis.compare.rows_and_columns import Row
from metafew.analysis.compare.runs import Omitted, Run
from metafew.analysis.compare.text_table import CAPTION, DAGGER, FAILED, Bold, TextTable
from metafew.errors import UsageError
from metafew.evaluation.statistics import format_difference, format_percent

UNPAIRED = "‡ unpaired, as the test tasks may differ: an interval of two means, wider than one of paired differences"
TOP = "bold: the best of a column and all rows whose difference to it has a 95 % interval that contains 0"
TABLES = ("table.md", "table.tex", "table.csv")
FIELDS = ("mean", "ci95", "standard_error", "seeds", "tasks", "failed", "transductive", "top")


def report_tables(comparison: Comparison, against: str | None, spread: str) -> list[TextTable]:
    """Return the tables of accuracies, of differences between rows, and of published results, if any."""
    tables = [accuracy_table(comparison, spread)]
    if len(comparison.rows) > 1:
        tables.append(difference_table(comparison, against))
    published = published_table(comparison)
    return [*tables, published] if published else tables


def accuracy_table(comparison: Comparison, spread: str) -> TextTable:
    """Return a table of accuracies in percent, with the top group in bold.

    Args:
        comparison: the runs.
        spread: ``"ci95"``, or ``"se"`` for standard errors.
    """
    rows, average_ranks = comparison.rows, comparison.average_ranks
    measured = [(i, cell) for (i, column), cell in comparison.cells.items() if not column.baseline]
    seeds = [join_distinct(len(cell.runs) for row, cell in measured if row == i) for i in range(len(rows))]
    several = set(seeds) != {"1"}
    columns = [*comparison.columns.values(), *["seeds"] * several, *["average rank"] * (average_ranks is not None)]
    table = TextTable("Accuracy", columns, notes=accuracy_notes(comparison, spread, several))
    for i, row in enumerate(rows):
        line = [row_name(row)]
        for column in comparison.columns:
            cell = comparison.cells.get((i, column))
            text = format_cell(cell, spread)
            line.append(Bold(text) if len(rows) > 1 and i in comparison.top.get(column, ()) else text)
        line += [seeds[i]] * several
        if average_ranks is not None:
            line.append(f"{average_ranks[i]:.2f}")
        table.rows.append(line)
    return table


def format_cell(cell: Measurement | None, spread: str) -> str:
    """Format an accuracy in percent with its interval, or with its standard error if ``spread`` is ``"se"``."""
    if cell is None:
        return format_percent(None)
    ci95 = cell.ci95 if spread == "ci95" else cell.error
    return format_percent({"mean": cell.mean, "ci95": ci95, "failed": cell.failed})


def accuracy_notes(comparison: Comparison, spread: str, several_seeds: bool) -> list[str]:
    """Return the notes of the table of accuracies."""
    notes = [CAPTION if spread == "ci95" else "mean ± one standard error over test tasks, in percent"]
    if several_seeds:
        over = "95 % t-interval" if spread == "ci95" else "one standard error"
        notes.append(f"several seeds: mean of their means ± {over} over the seeds; tasks and seeds are never pooled")
    if len(comparison.rows) > 1:
        notes.append(TOP)
    if comparison.average_ranks is not None:
        notes.append("average rank over columns: rows that do not differ on the same tasks share their ranks")
    if any(row.transductive for row in comparison.rows):
        notes.append(DAGGER)
    if any(cell.failed for cell in comparison.cells.values()):
        notes.append(FAILED)
    notes.append(f"{join_distinct(cell.tasks for cell in comparison.cells.values())} test tasks")
    if comparison.common:
        notes.append(f"all runs: {comparison.common}")
    selected: dict[str | None, list[str]] = {}
    for row in comparison.rows:
        for choice in dict.fromkeys(run.report.get("select") for run in row.runs):
            selected.setdefault(choice, []).append(row.label)
    if len(selected) > 1:
        weights = {"best": "the best on validation tasks", "last": "the last ones", None: "those of ckpt"}
        parts = [f"{weights.get(choice, choice)} in {', '.join(rows)}" for choice, rows in selected.items()]
        notes.append(f"weights: {'; '.join(parts)}")
    return notes


def difference_table(comparison: Comparison, against: str | None) -> TextTable:
    """Return a table of differences to the best row, or to the reference row, in points."""
    differences = comparison.differences
    columns = {c: name for c, name in comparison.columns.items() if any(column == c for _, column in differences)}
    notes = ["mean ± 95 % confidence interval of the differences on the same test tasks"]
    if any(len(cell.runs) > 1 for cell in comparison.cells.values()):
        notes.append("rows with the same seeds, two or more: the t-interval over the difference of each seed")
    if not all(difference.paired for difference in differences.values()):
        notes.append(UNPAIRED)
    rows = [
        [row_name(row), *(format_points(differences.get((i, column))) for column in columns)]
        for i, row in enumerate(comparison.rows)
    ]
    return TextTable(f"Difference to {against or 'the best'} (points)", list(columns.values()), rows, notes)


def row_name(row: Row) -> str:
    """Return the label of a row, with a dagger if it is transductive."""
    return f"{row.label} †" if row.transductive else row.label


def format_points(difference: Difference | None) -> str:
    """Format a difference of accuracies in points.

    >>> format_points(Difference(-0.0123, 0.004, True)), format_points(Difference(0.01, None, False))
    ('−1.23 ± 0.40', '+1.00 ‡')
    >>> format_points(None)
    '–'
    """
    if difference is None:
        return "–"
    return f"{format_difference(difference._asdict())}{'' if difference.paired else ' ‡'}"


def join_distinct(values: Iterable) -> str:
    """Join the distinct values, sorted.

    >>> join_distinct([600, 60, 600]), join_distinct(["best"])
    ('60 or 600', 'best')
    """
    return " or ".join(map(str, sorted(set(values), key=lambda value: (str(type(value)), value))))


def write_report(
    folder: Path, comparison: Comparison, tables: Sequence[TextTable], runs: Sequence[Run], omitted: Sequence[Omitted]
) -> tuple[list[str], list[Omitted]]:
    """Write table.md, table.tex and table.csv of tested runs, the figures of all runs, and index.html.

    Args:
        folder: the folder to write.
        comparison: the tested runs.
        tables: the tables of the comparison.
        runs: all runs, tested or analyzed.
        omitted: folders and files without a finished run.

    Returns:
        The names of the files, and all omissions, including figures.

    Raises:
        UsageError: if the folder cannot be written, or there is nothing to write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures, undrawn = draw_comparison(comparison, runs, folder)
        omitted = [*omitted, *undrawn]
        if not tables and not figures:
            reason = undrawn[0].reason if undrawn else "the figures of a single analyzed run are in its own folder"
            raise UsageError(
                f"expected runs that were tested, or several analyzed ones, got {len(runs)} that were only analyzed "
                f"({reason}): add others, or type stages=[test,analyze]"
            )
        if tables:
            write_tables(folder, comparison, tables, omitted)
        (folder / "index.html").write_text(html_page(tables, comparison, figures, omitted), "utf-8")
    except OSError as error:
        raise UsageError(f"expected a folder that can be written, got {folder} ({error}): type out=DIR") from error
    return [*TABLES[: 3 * bool(tables)], *(file.name for file in figures.values()), "index.html"], omitted


def write_tables(folder: Path, comparison: Comparison, tables: Sequence[TextTable], omitted: Sequence[Omitted]) -> None:
    """Write table.md, table.tex and table.csv."""
    markdown, latex, lines = (folder / name for name in TABLES)
    left_out = [f"- {place}: {reason}" for place, reason in omitted]
    listed = ["## Left out", "", *left_out, ""] if left_out else []
    markdown.write_text("\n".join([*(table.markdown() for table in tables), *listed]), "utf-8")
    latex.write_text("\n".join(["% \\usepackage{booktabs}", *(table.latex() for table in tables)]), "utf-8")
    with lines.open("w", newline="", encoding="utf-8") as file:
        write_csv(file, comparison)


def write_csv(file: TextIO, comparison: Comparison) -> None:
    """Write one line per measurement, with full precision."""
    writer = csv.writer(file)
    writer.writerow(["runs", "measure", *FIELDS, "difference", "difference_ci95", "paired", "average_rank", "folders"])
    for (i, column), cell in comparison.cells.items():
        row, gap = comparison.rows[i], comparison.differences.get((i, column))
        figures = [cell.mean, cell.ci95, cell.error, len(cell.runs), cell.tasks, cell.failed]
        flags = [row.transductive, "" if column.baseline else i in comparison.top.get(column, ())]
        rank = "" if comparison.average_ranks is None else comparison.average_ranks[i]
        folders = " ".join(str(folder) for run in cell.runs for folder in run.folders)
        name = comparison.columns[column]
        writer.writerow([row.label, name, *figures, *flags, *(gap or ("", "", "")), rank, folders])
