"""The tables of a comparison of runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from metafew.analysis.compare.comparison import Comparison, Difference, Measurement
from metafew.analysis.compare.heads_as_rows import TIME, heads_as_rows, kinds_of_heads, times_of_heads
from metafew.analysis.compare.published import published_table
from metafew.analysis.compare.rows_and_columns import Column, Row
from metafew.analysis.compare.settings import format_overrides, format_value, natural_value
from metafew.analysis.text_table import CAPTION, DAGGER, FAILED, Bold, TextTable, in_groups
from metafew.errors import UsageError
from metafew.evaluation.statistics import format_difference, format_percent

TIE = "≈"
UNPAIRED = "‡ unpaired, as the test tasks may differ: the interval of a difference of means, wider than a paired one"
TOP = f"bold: the best; {TIE}: the 95 % interval of its difference from the best contains 0"

Texts = Mapping[tuple[int, Column], str]
"""The text of each cell, by row number and column."""


class Arrangement(NamedTuple):
    """The settings whose values are the rows, the columns, and the different tables of a comparison."""

    rows: list[str]
    columns: list[str]
    tables: list[str]


def arrange(comparison: Comparison, rows: str | None, columns: str | None) -> Arrangement | None:
    """Return which settings are rows and which are columns; None if all settings are in the names of rows.

    Args:
        comparison: the runs.
        rows: settings separated by commas; None for those that are not columns.
        columns: settings separated by commas; None for those that are not rows.

    Raises:
        UsageError: if one of them does not differ between the rows, or is both a row and a column.
    """
    varying = list(dict.fromkeys(key for row in comparison.rows for key in row.settings))
    keys = {option: value.split(",") if value else [] for option, value in (("rows", rows), ("columns", columns))}
    for option, other in (("rows", "columns"), ("columns", "rows")):
        allowed = [key for key in varying if key not in keys[other]]
        for key in keys[option]:
            if key not in allowed:
                raise UsageError(
                    f"expected {option} to be settings that differ between the runs and are not {other}, "
                    f"{', '.join(allowed) or 'of which there are none'}, got {key} (shots and datasets are always "
                    f"columns): {f'type {option}={allowed[0]}' if allowed else f'leave out {option}={key}'}"
                )
    rest = [key for key in varying if key not in keys["rows"] + keys["columns"]]
    if bool(keys["rows"]) != bool(keys["columns"]):
        keys["columns" if keys["rows"] else "rows"], rest = rest, []
    return Arrangement(keys["rows"], keys["columns"], rest) if keys["columns"] else None


def report_tables(
    comparison: Comparison, against: str | None, spread: str, arrangement: Arrangement | None = None
) -> list[TextTable]:
    """Return the tables of accuracies, of differences between rows and heads, and of published results, if any.

    Args:
        comparison: the runs.
        against: overrides that identify the row to which differences are taken; None for the best.
        spread: ``"ci95"``, or ``"se"`` for standard errors.
        arrangement: the settings that are rows and columns; None for a row for each combination.
    """
    title, heads = f"Difference from {against or 'the best'} (points)", heads_as_rows(comparison)
    if arrangement is None and len(comparison.rows) == 1:
        tables = [] if heads else [accuracy_table(comparison, spread, "Accuracy")]  # the tables of heads show all of it
    elif arrangement is None:
        accuracy = accuracy_table(comparison, spread, "Accuracy", baselines=heads is None)
        tables = [accuracy, difference_table(comparison, title)]
    else:
        notes = [*accuracy_notes(comparison, spread), *baseline_notes(comparison, spread)]
        tables = cross(comparison, accuracy_texts(comparison, spread), arrangement, "Accuracy", notes)
        tables += cross(comparison, difference_texts(comparison), arrangement, title, difference_notes(comparison))
    if heads:
        gaps = difference_table(heads, "Difference from the best head (points)")
        tables += [accuracy_table(heads, spread, "Heads"), gaps]
    published = published_table(comparison)
    return [*tables, published] if published else tables


def accuracy_table(comparison: Comparison, spread: str, title: str, baselines: bool = True) -> TextTable:
    """Return a table of accuracies in percent, with a row for each combination of settings, or head.

    With ``baselines``, the baselines that all rows share get rows of their own; without, another table shows them.
    """
    texts, seeds, times = accuracy_texts(comparison, spread), seed_counts(comparison), times_of_heads(comparison)
    shared, marked = shared_baselines(comparison), comparison.transductive_columns
    columns = {column: name for column, name in column_names(comparison).items() if column not in shared}
    further = {"seeds": seeds} if set(seeds) != {"1"} else {}
    if comparison.average_ranks is not None:
        further["average rank"] = [f"{rank:.2f}" for rank in comparison.average_ranks]
    if any(times):
        further[TIME] = times
    names = [*columns.values(), *further]
    lines = []
    for i, row in enumerate(comparison.rows):
        cells = [mark_transductive(comparison, texts, i, c, row.transductive or c in marked) for c in columns]
        lines.append([row_name(row), *cells, *(values[i] for values in further.values())])
    lines = in_groups(lines, kinds_of_heads(comparison))
    table = TextTable(title, names, lines, accuracy_notes(comparison, spread))
    for name in dict.fromkeys(column.head for column in shared if baselines):
        own = {(column.tasks, column.number): cell for column, cell in shared.items() if column.head == name}
        cells = [own.get((column.tasks, column.number)) if column.source is None else None for column in columns]
        line = [name, *(format_cell(cell, spread) for cell in cells)]
        table.rows.append(line + [""] * (len(names) + 1 - len(line)))
    return table


def difference_table(comparison: Comparison, title: str) -> TextTable:
    """Return a table of differences in points, with the rows of :func:`accuracy_table`."""
    texts, names = difference_texts(comparison), column_names(comparison)
    columns = {column: name for column, name in names.items() if any(column == own for _, own in texts)}
    lines = [
        [row_name(row), *(texts.get((i, column), "–") for column in columns)] for i, row in enumerate(comparison.rows)
    ]
    lines = in_groups(lines, kinds_of_heads(comparison))
    return TextTable(title, list(columns.values()), lines, difference_notes(comparison))


def column_names(comparison: Comparison) -> dict[Column, str]:
    """Return the names of columns, with a dagger for columns with transductive measurements only."""
    marked = comparison.transductive_columns
    return {column: f"{name} †" if column in marked else name for column, name in comparison.columns.items()}


def cross(
    comparison: Comparison, texts: Texts, arrangement: Arrangement, title: str, notes: list[str]
) -> list[TextTable]:
    """Return a table with some settings as rows and some as columns, for each measure and value of other settings."""
    columns = {column: name for column, name in comparison.columns.items() if not column.baseline}
    places = {tuple(format_values(row, part) for part in arrangement): i for i, row in enumerate(comparison.rows)}
    down, across, others = (distinct_values(comparison.rows, part) for part in arrangement)
    names = [" ".join(arrangement.rows), " ".join(arrangement.columns)]
    tables = []
    for (column, name), fixed in product(columns.items(), others):
        parts = [
            f"{title} by {' and '.join(filter(None, names))}",
            *[name] * (len(columns) > 1),
            *[fixed] * bool(fixed),
        ]
        table = TextTable(", ".join(parts), across, corner=names[0])
        for first in down:
            cells = [mark_transductive(comparison, texts, places.get((first, own, fixed)), column) for own in across]
            if set(cells) != {"–"}:
                table.rows.append([first, *cells])
        tables.append(table)
    if tables:
        tables[-1].notes = notes
    return tables


def mark_transductive(
    comparison: Comparison, texts: Texts, row: int | None, column: Column, named: bool = False
) -> str:
    """Return the text of a cell, with a dagger if it is transductive and not ``named`` so by its row or column."""
    if row is None or (row, column) not in texts:
        return "–"
    text = texts[row, column]
    return type(text)(f"{text} †") if comparison.cells[row, column].transductive and not named else text


def distinct_values(rows: Sequence[Row], keys: list[str]) -> list[str]:
    """Return the different values of the settings ``keys``, sorted."""
    ordered = sorted(rows, key=lambda row: [natural_value(row.settings.get(key)) for key in keys])
    return list(dict.fromkeys(format_values(row, keys) for row in ordered))


def format_values(row: Row, keys: list[str]) -> str:
    """Return the settings ``keys`` of a row as overrides, or only the value of a single one."""
    if len(keys) == 1 and keys[0] in row.settings:
        return format_value(row.settings[keys[0]])
    return format_overrides(row.settings, keys)


def accuracy_texts(comparison: Comparison, spread: str) -> dict[tuple[int, Column], str]:
    """Return the accuracies in percent, with the best of each column in bold and those that do not differ marked."""
    texts = {}
    for (i, column), cell in comparison.cells.items():
        text = format_cell(cell, spread)
        if len(comparison.rows) > 1 and i in comparison.top.get(column, ()):
            text = Bold(text) if i == comparison.best[column] else f"{TIE} {text}"
        texts[i, column] = text
    return texts


def difference_texts(comparison: Comparison) -> dict[tuple[int, Column], str]:
    """Return the differences in points."""
    return {key: format_points(difference) for key, difference in comparison.differences.items()}


def format_cell(cell: Measurement | None, spread: str) -> str:
    """Format an accuracy in percent with its interval, or with its standard error if ``spread`` is ``"se"``."""
    if cell is None:
        return format_percent(None)
    ci95 = cell.ci95 if spread == "ci95" else cell.error
    return format_percent({"mean": cell.mean, "ci95": ci95, "failed": cell.failed})


def shared_baselines(comparison: Comparison) -> dict[Column, Measurement]:
    """Return the baselines that are the same for all rows that have them, as they are on the same tasks."""
    found = {}
    for column in comparison.columns:
        cells = [cell for (_, own), cell in comparison.cells.items() if own == column]
        if column.baseline and all((cell.mean, cell.ci95) == (cells[0].mean, cells[0].ci95) for cell in cells):
            found[column] = cells[0]
    return found


def baseline_notes(comparison: Comparison, spread: str) -> list[str]:
    """Return a note on each baseline."""
    notes = []
    for column, name in comparison.columns.items():
        cells = [cell for (_, own), cell in comparison.cells.items() if own == column and column.baseline]
        if cells:
            notes.append(f"{name}: {' or '.join(dict.fromkeys(format_cell(cell, spread) for cell in cells))}")
    return notes


def seed_counts(comparison: Comparison) -> list[str]:
    """Return the number of seeds of each row."""
    measured = [(i, cell) for (i, column), cell in comparison.cells.items() if not column.baseline]
    return [join_distinct(len(cell.runs) for row, cell in measured if row == i) for i in range(len(comparison.rows))]


def accuracy_notes(comparison: Comparison, spread: str) -> list[str]:
    """Return the notes of the table of accuracies."""
    notes = [CAPTION if spread == "ci95" else "mean ± one standard error over test tasks, in percent"]
    seeds = {len(cell.runs) for (_, column), cell in comparison.cells.items() if not column.baseline}
    if seeds != {1}:
        over = "95 % t-interval" if spread == "ci95" else "one standard error"
        notes.append(
            f"{join_distinct(seeds)} seeds: mean of their means ± {over} over the seeds; tasks and seeds are never "
            "pooled"
        )
    if len(comparison.rows) > 1:
        notes.append(TOP)
    if comparison.average_ranks is not None:
        notes.append("average rank over columns: a rank is 1 plus the better rows and half of those that do not differ")
    if any(times_of_heads(comparison)):
        notes.append(f"{TIME}: milliseconds that the head takes, without the embedding of images")
    if any(cell.transductive for cell in comparison.cells.values()):
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


def difference_notes(comparison: Comparison) -> list[str]:
    """Return the notes of the table of differences."""
    notes = ["mean ± 95 % confidence interval of the differences on the same test tasks"]
    if any(len(cell.runs) > 1 for cell in comparison.cells.values()):
        notes.append("rows that share two seeds or more: the t-interval over the differences for each of these seeds")
    if not all(difference.paired for difference in comparison.differences.values()):
        notes.append(UNPAIRED)
    return notes


def row_name(row: Row) -> str:
    """Return the label of a row, with a dagger if it is transductive."""
    return f"{row.label} †" if row.transductive else row.label


def format_points(difference: Difference) -> str:
    """Format a difference of accuracies in points.

    >>> format_points(Difference(-0.0123, 0.004, True)), format_points(Difference(0.01, None, False))
    ('−1.23 ± 0.40', '+1.00 ‡')
    """
    return f"{format_difference(difference._asdict())}{'' if difference.paired else ' ‡'}"


def join_distinct(values: Iterable) -> str:
    """Join the distinct values, sorted.

    >>> join_distinct([600, 60, 600]), join_distinct(["best"])
    ('60 or 600', 'best')
    """
    return " or ".join(map(str, sorted(set(values), key=lambda value: (str(type(value)), value))))
