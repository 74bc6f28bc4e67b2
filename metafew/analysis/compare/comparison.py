"""Finished runs side by side: rows that differ in what was decided, columns that were measured, and who is best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from metafew.analysis.compare.rows_and_columns import OWN, Column, Row, columns_of, rows_of
from metafew.analysis.compare.runs import Run, Task
from metafew.analysis.compare.settings import differing, typed, word
from metafew.errors import UsageError
from metafew.evaluation.statistics import equal, interval, over_seeds, ranks, summarized

SAME = ("test.seed", "test.query", "test.total")
"""Settings that further make test tasks the same ones."""


@dataclass(frozen=True)
class Cell:
    """What the runs of a row measured in a column.

    Attributes:
        mean: over tasks and then over seeds; None where a run diverged.
        ci95: half width of the 95 % interval: over tasks for one seed, over the means of several seeds (t).
        error: one standard error, of the same.
        tasks: the number of test tasks.
        runs: one for each seed.
        accuracies: of each test task, averaged over seeds; empty where these are not known or not the same tasks.
        seeds: the mean of each seed.
        drawn: what the tasks were drawn by.
    """

    mean: float | None
    ci95: float | None
    error: float | None
    tasks: int
    runs: list[Run]
    accuracies: dict[Task, float] = field(repr=False)
    seeds: dict[int, float]
    drawn: tuple | None


class Difference(NamedTuple):
    """A row minus another: of the same tasks one by one where ``paired``, else of two means."""

    mean: float
    ci95: float | None
    paired: bool

    @property
    def equal(self) -> bool:
        """Whether the interval holds 0."""
        return equal(self._asdict())


NOTHING = Difference(0.0, None, True)
"""A row minus itself."""


@dataclass
class Comparison:
    """The table: cells by the number of their row and their column, and what follows from them.

    Attributes:
        rows: what was decided.
        columns: what was measured, and its name.
        cells: those that there are.
        common: the words that hold for all runs.
        top: the rows that cannot be told apart from the best, and that itself.
        differences: to the best, or to one row.
        average_ranks: one for each row, where there are several columns to rank over.
    """

    rows: list[Row]
    columns: dict[Column, str]
    cells: dict[tuple[int, Column], Cell]
    common: str
    top: dict[Column, set[int]] = field(default_factory=dict)
    differences: dict[tuple[int, Column], Difference] = field(default_factory=dict)
    average_ranks: np.ndarray | None = None


def compare(runs: Sequence[Run], against: str | None = None) -> Comparison:
    """Return the table of these runs.

    Args:
        runs: finished ones.
        against: words that name one row, with which the others are compared; by default with the best of each column.

    Raises:
        UsageError: ``against`` names none of the rows, or several.
    """
    if not runs:
        return Comparison([], {}, {}, "")
    rows, columns = rows_of(runs), columns_of(runs)
    cells = {(i, column): cell for i, row in enumerate(rows) for column in columns if (cell := cell_of(row, column))}
    constant = [key for key in runs[0].facts if key in ("head", "norm", "backbone", "dataset")]
    decided = dict.fromkeys([*constant, *(key for run in runs for key in run.settings)])
    varying = differing([{key: run.facts.get(key) for key in decided} for run in runs])
    table = Comparison(rows, columns, cells, typed(runs[0].facts, [key for key in decided if key not in varying]))
    reference = None if against is None else named(rows, against)
    for column in columns:
        measured = {i: cell for (i, own), cell in cells.items() if own == column and cell.mean is not None}
        if column.baseline or not measured:
            continue
        best = max(measured, key=lambda i: measured[i].mean)
        gaps = {i: minus(cell, measured[best]) for i, cell in measured.items()}
        table.top[column] = {i for i, gap in gaps.items() if i == best or gap.equal}
        base = best if reference is None else reference
        if base in measured:
            gaps = {i: minus(cell, measured[base]) for i, cell in measured.items()} | {base: NOTHING}
            table.differences |= {(i, column): gap for i, gap in gaps.items()}
    table.average_ranks = rank(table)
    return table


def cell_of(row: Row, column: Column) -> Cell | None:
    """Return what the runs of a row measured, None where none did."""
    measured = [(run, value) for run in row.runs if (value := column.of(run))]
    if not measured:
        return None
    runs, values = zip(*measured, strict=True)
    if column.baseline and all(value == values[0] for value in values):  # nothing is trained: there are no seeds
        runs, values = runs[:1], values[:1]
    tasks = [accuracies(run, column) for run in runs]
    drawn = {drawn_by(run) for run in runs}
    same = len(drawn) == 1 and None not in drawn and all(each.keys() == tasks[0].keys() for each in tasks)
    mean = {task: float(np.mean([each[task] for each in tasks])) for task in tasks[0]} if same else {}
    count = max(value.get("tasks") or len(each) for value, each in zip(values, tasks, strict=True))
    seeds = {run.seed: value["mean"] for run, value in zip(runs, values, strict=True)}
    return Cell(*summarized(values).values(), count, list(runs), mean, seeds, drawn.pop() if same else None)


def accuracies(run: Run, column: Column) -> dict[Task, float]:
    """Return the accuracy of each task behind a measure."""
    if column.baseline:
        return {}
    head = run.heads[0] if column.head == OWN else column.head
    return run.of_tasks(head, column.number, column.source)


def minus(ours: Cell, theirs: Cell) -> Difference:
    """Return the difference of two cells: seed by seed for the same seeds, else task by task for the same tasks."""
    same = ours.drawn and (ours.drawn, ours.accuracies.keys()) == (theirs.drawn, theirs.accuracies.keys())
    if same and seed_by_seed([ours, theirs]):
        pairs = over_seeds([value - theirs.seeds[seed] for seed, value in ours.seeds.items()])
        return Difference(pairs["mean"], pairs["ci95"], True)
    if same and ours.accuracies:
        pairs = interval(np.array([value - theirs.accuracies[task] for task, value in ours.accuracies.items()]))
        return Difference(pairs["mean"], pairs["ci95"], True)
    spreads = ours.ci95, theirs.ci95
    return Difference(ours.mean - theirs.mean, None if None in spreads else math.hypot(*spreads), False)


def seed_by_seed(cells: Sequence[Cell]) -> bool:
    """Tell whether cells are of the same seeds, and of several."""
    return len(cells[0].seeds) > 1 and all(cell.seeds.keys() == cells[0].seeds.keys() for cell in cells)


def rank(table: Comparison) -> np.ndarray | None:
    """Return the average rank of each row over columns, several, that all rows have on the same tasks."""
    split = {column._replace(source=None) for column in table.columns if column.source is not None}
    placed = []
    for column in table.columns:
        cells = [table.cells.get((i, column)) for i in range(len(table.rows))]
        if column.baseline or column in split or None in cells or any(cell.mean is None for cell in cells):
            continue
        if all(minus(cell, cells[0]).paired for cell in cells):
            if seed_by_seed(cells):
                units, spread = [cell.seeds for cell in cells], over_seeds
            else:
                units, spread = [cell.accuracies for cell in cells], interval
            placed.append(ranks(np.array([[unit[key] for key in units[0]] for unit in units]), spread))
    return np.mean(placed, 0) if len(placed) > 1 and len(table.rows) > 1 else None


def named(rows: Sequence[Row], against: str) -> int:
    """Return the number of the row that these words name."""
    words = against.split()
    fits = [
        number
        for number, row in enumerate(rows)
        if all(any(f"{k}={word(v)}" == each for k, v in row.runs[0].facts.items()) for each in words)
    ]
    if len(fits) != 1:
        labels = "; ".join(row.label for row in rows)
        raise UsageError(
            f"against wants the words of one row, and {against!r} fits {len(fits)} of these: {labels}: "
            f'type against="{rows[0].label}"'
        )
    return fits[0]


def drawn_by(run: Run) -> tuple | None:
    """Return what else the test tasks depend on; None where the run does not say it."""
    return tuple(run.facts[name] for name in SAME) if all(name in run.facts for name in SAME) else None
