"""The tables of a comparison of runs, and the files that hold them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from metafew.analysis.compare import comparison_plots
from metafew.analysis.compare.comparison import Cell, Comparison, Difference
from metafew.analysis.compare.html_page import page
from metafew.analysis.compare.published import beside
from metafew.analysis.compare.rows_and_columns import Row
from metafew.analysis.compare.runs import Omitted, Run
from metafew.analysis.compare.table import CAPTION, DAGGER, Bold, Sheet
from metafew.errors import UsageError
from metafew.evaluation.statistics import format_percent

UNPAIRED = "‡ not on tasks known to be the same: an interval of two means, wider than that of paired differences"
TOP = "bold: the best of a column and all whose difference to it has a 95 % interval with 0 inside"
TABLES = ("table.md", "table.tex", "table.csv")
FIELDS = ("mean", "ci95", "standard_error", "seeds", "tasks", "transductive", "top")


def sheets(table: Comparison, against: str | None, spread: str) -> list[Sheet]:
    """Return the table of accuracies, that of differences where there are some, and published figures that match."""
    several = [accuracy_sheet(table, spread)]
    if len(table.rows) > 1:
        several.append(difference_sheet(table, against))
    published = beside(table)
    return [*several, published] if published else several


def accuracy_sheet(table: Comparison, spread: str) -> Sheet:
    """Return the accuracies in percent, those of the top group in bold."""
    measured = [(i, cell) for (i, column), cell in table.cells.items() if not column.baseline]
    seeds = [counts(len(cell.runs) for row, cell in measured if row == i) for i in range(len(table.rows))]
    many = set(seeds) != {"1"}
    columns = [*table.columns.values(), *["seeds"] * many, *["average rank"] * (table.average_ranks is not None)]
    sheet = Sheet("Accuracy", columns)
    for i, row in enumerate(table.rows):
        line = [marked(row)]
        for column in table.columns:
            text = format_percent(summary(table.cells.get((i, column)), spread))
            line.append(Bold(text) if len(table.rows) > 1 and i in table.top.get(column, ()) else text)
        line += [seeds[i]] * many
        if table.average_ranks is not None:
            line.append(f"{table.average_ranks[i]:.2f}")
        sheet.rows.append(line)
    sheet.notes = accuracy_notes(table, spread, many)
    return sheet


def accuracy_notes(table: Comparison, spread: str, many: bool) -> list[str]:
    """Return what must be known to read the table of accuracies."""
    notes = [CAPTION if spread == "ci95" else "mean ± one standard error over test tasks, in percent"]
    if many:
        over = "95 % t-interval" if spread == "ci95" else "one standard error"
        notes.append(f"of several seeds: mean of their means ± {over} over these, tasks and seeds never pooled")
    if len(table.rows) > 1:
        notes.append(TOP)
    if table.average_ranks is not None:
        notes.append("average rank over columns: rows that cannot be told apart on the same tasks share their ranks")
    if any(row.transductive for row in table.rows):
        notes.append(DAGGER)
    notes.append(f"{counts(cell.tasks for cell in table.cells.values())} test tasks")
    if table.common:
        notes.append(f"all runs: {table.common}")
    selected: dict[str, list[str]] = {}
    for row in table.rows:
        for word in dict.fromkeys(run.report.get("select") for run in row.runs):
            selected.setdefault(word, []).append(row.label)
    if len(selected) > 1:
        of = {"best": "the best on validation tasks", "last": "the last ones", None: "those of ckpt"}
        notes.append(
            "weights: " + "; ".join(f"{of.get(word, word)} in {', '.join(rows)}" for word, rows in selected.items())
        )
    return notes


def difference_sheet(table: Comparison, against: str | None) -> Sheet:
    """Return the differences to the best, or to the row that was named, in points."""
    columns = {c: name for c, name in table.columns.items() if any(column == c for _, column in table.differences)}
    sheet = Sheet(f"Difference to {against or 'the best'} (points)", list(columns.values()))
    for i, row in enumerate(table.rows):
        cells = [table.differences.get((i, column)) for column in columns]
        sheet.rows.append([marked(row), *map(points, cells)])
    sheet.notes = ["mean ± 95 % confidence interval of the differences on the same test tasks"]
    if any(len(cell.runs) > 1 for cell in table.cells.values()):
        sheet.notes.append("rows of the same seeds, several: the t-interval over the difference of each seed")
    if not all(difference.paired for difference in table.differences.values()):
        sheet.notes.append(UNPAIRED)
    return sheet


def marked(row: Row) -> str:
    """Return the label of a row, with a dagger where a query could see others."""
    return f"{row.label} †" if row.transductive else row.label


def summary(cell: Cell | None, spread: str) -> dict | None:
    """Return mean and spread of a cell as :func:`figure` takes them."""
    return cell and {"mean": cell.mean, "ci95": cell.ci95 if spread == "ci95" else cell.error}


def points(difference: Difference | None) -> str:
    """Return a difference of accuracies in points.

    >>> points(Difference(-0.0123, 0.004, True)), points(Difference(0.01, None, False)), points(None)
    ('−1.23 ± 0.40', '+1.00 ‡', '–')
    """
    if difference is None:
        return "–"
    spread = "" if difference.ci95 is None else f" ± {100 * difference.ci95:.2f}"
    return f"{100 * difference.mean:+.2f}{spread}{'' if difference.paired else ' ‡'}".replace("-", "−")


def counts(values: Iterable) -> str:
    """Return the different values of some cells.

    >>> counts([600, 60, 600]), counts(["best"])
    ('60 or 600', 'best')
    """
    return " or ".join(map(str, sorted(set(values), key=lambda value: (str(type(value)), value))))


def write(
    folder: Path, table: Comparison, several: Sequence[Sheet], runs: Sequence[Run], omitted: Sequence[Omitted]
) -> tuple[list[str], list[Omitted]]:
    """Write table.md, table.tex and table.csv where runs were tested, the figures that they allow, and index.html.

    Args:
        folder: where to.
        table: of the runs that were tested.
        several: what it shows.
        runs: all, which may have been analyzed too, or instead.
        omitted: what is none.

    Returns:
        The names of the tables, the figures and the page, and all that is left out: figures too.

    Raises:
        UsageError: the folder cannot be written, or there is nothing to write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures, undrawn = comparison_plots.draw(table, runs, folder)
        omitted = [*omitted, *undrawn]
        if not several and not figures:
            reason = undrawn[0].reason if undrawn else "one alone has its figures in its own folder"
            raise UsageError(
                f"a report wants runs that were tested, or analyzed ones that differ, not {len(runs)} that were only "
                f"analyzed ({reason}): add others, or type stages=[test,analyze]"
            )
        if several:
            write_tables(folder, table, several, omitted)
        (folder / "index.html").write_text(page(several, table, figures, omitted), "utf-8")
    except OSError as error:
        raise UsageError(f"the report cannot be written into {folder} ({error}): type out=DIR") from error
    return [*TABLES[: 3 * bool(several)], *(file.name for file in figures.values()), "index.html"], omitted


def write_tables(folder: Path, table: Comparison, several: Sequence[Sheet], omitted: Sequence[Omitted]) -> None:
    """Write table.md, table.tex and table.csv."""
    markdown, latex, lines = (folder / name for name in TABLES)
    left_out = [f"- {place}: {reason}" for place, reason in omitted]
    listed = ["## Left out", "", *left_out, ""] if left_out else []
    markdown.write_text("\n".join([*(sheet.markdown() for sheet in several), *listed]), "utf-8")
    latex.write_text("\n".join(["% \\usepackage{booktabs}", *(sheet.latex() for sheet in several)]), "utf-8")
    with lines.open("w", newline="", encoding="utf-8") as file:
        write_csv(csv.writer(file), table)


def write_csv(writer, table: Comparison) -> None:
    """Write one line for each cell, with all digits."""
    writer.writerow(["runs", "measure", *FIELDS, "difference", "difference_ci95", "paired", "average_rank", "folders"])
    for (i, column), cell in table.cells.items():
        row, gap = table.rows[i], table.differences.get((i, column))
        figures = [cell.mean, cell.ci95, cell.error, len(cell.runs), cell.tasks]
        flags = [row.transductive, "" if column.baseline else i in table.top.get(column, ())]
        rank = "" if table.average_ranks is None else table.average_ranks[i]
        folders = " ".join(str(run.folder) for run in cell.runs)
        writer.writerow([row.label, table.columns[column], *figures, *flags, *(gap or ("", "", "")), rank, folders])
