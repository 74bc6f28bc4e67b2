"""The comparison of the heads of runs: each head is a row. Imports no torch."""

from __future__ import annotations

from metafew.analysis.compare.comparison import Comparison, rank_rows
from metafew.analysis.compare.rows_and_columns import Column, Row

TIME = "ms a task"


def heads_as_rows(comparison: Comparison) -> Comparison | None:
    """Return the same measurements with a row for each head, inductive ones first, and a column for each former row.

    All heads of a column share the network and the test tasks. Returns None if no row has several heads.
    """
    rows = comparison.rows
    own = {i: dict.fromkeys(head for run in row.runs for head in run.heads) for i, row in enumerate(rows)}
    if max(map(len, own.values()), default=0) < 2:
        return None
    heads = dict.fromkeys(head for names in own.values() for head in names)
    runs = [run for row in rows for run in row.runs]
    found = [Row(head, [run for run in runs if head in run.heads], head=head) for head in heads]
    found.sort(key=lambda row: row.transductive)
    places = {row.head: number for number, row in enumerate(found)}
    result = Comparison(found, {}, {}, comparison.common)
    for i, row in enumerate(rows):
        for column, name in comparison.columns.items():
            if cell := comparison.cells.get((i, column)):
                head = column.head_of(row.runs[0])
                renamed = column._replace(tasks=f"{i} {column.tasks}", head=column.head if column.baseline else "")
                result.columns[renamed] = column_name(column, name, row.label if len(rows) > 1 else "")
                result.cells[places.get(head, 0), renamed] = cell
    rank_rows(result, least=1)
    return result


def kinds_of_heads(comparison: Comparison) -> list[bool]:
    """Return whether each row is transductive, where rows are heads."""
    return [row.transductive for row in comparison.rows if row.head]


def column_name(column: Column, name: str, row: str) -> str:
    """Return the name of a column without its head, after the label of its row.

    >>> column_name(Column("", "svm"), "test.way=5, svm, 1-shot", "norm=batch")
    'norm=batch, test.way=5, 1-shot'
    >>> column_name(Column("", "svm"), "svm", "")
    'accuracy'
    """
    if column.baseline:
        return name
    return ", ".join([*filter(None, [row]), *(part for part in name.split(", ") if part != column.head)]) or "accuracy"


def times_of_heads(comparison: Comparison) -> list[str]:
    """Return the milliseconds per task of each row, averaged over columns; empty strings if the rows are not heads."""
    times: list[str] = []
    for i, row in enumerate(comparison.rows):
        seconds = [cell.seconds_per_task for (own, _), cell in comparison.cells.items() if own == i and row.head]
        known = [value for value in seconds if value is not None]
        times.append(f"{1000 * sum(known) / len(known):.2f}" if known else "")
    return times
