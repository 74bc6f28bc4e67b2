"""A comparison of finished runs: measurements, paired differences, and the best row per column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from metafew.analysis.compare.rows_and_columns import (
    Column,
    Row,
    canonical,
    find_columns,
    group_rows,
    named_by_folder,
)
from metafew.analysis.compare.runs import Run, TaskKey
from metafew.analysis.compare.settings import format_overrides, format_value, varying_keys
from metafew.errors import UsageError
from metafew.evaluation.statistics import contains_zero, interval, ranks, summarize_seeds

TASK_STREAM = ("test.seed", "test.query", "test.total")
"""Settings that, with those of a column, determine the test tasks."""


@dataclass(frozen=True)
class Measurement:
    """One measure of the runs in a row.

    Attributes:
        mean: over tasks, then over seeds; None if a run diverged.
        ci95: half width of the 95 % interval: over tasks for one seed, else the t-interval over the means of the seeds.
        error: the corresponding standard error.
        tasks: the number of test tasks.
        runs: one run per seed.
        accuracies: the accuracy of each test task, averaged over seeds; empty if unknown, or if tasks differ between
            seeds.
        seeds: the mean for each seed.
        task_stream: the values of :data:`TASK_STREAM` and the images, or another key that identifies the test tasks;
            None if unknown.
        lower_bound: whether the mean is only a lower bound, as a seed had not reached its target when training ended.
        failed: the number of test tasks that failed, over all seeds; 0 if unknown.
        transductive: whether the prediction of a query may depend on other queries.
        seconds_per_task: of the head, without the embedding; the mean over seeds, or None if unknown.
    """

    mean: float | None
    ci95: float | None
    error: float | None
    tasks: int
    runs: list[Run]
    accuracies: dict[TaskKey, float] = field(repr=False)
    seeds: dict[int, float]
    task_stream: tuple | None
    lower_bound: bool = False
    failed: int = 0
    transductive: bool = False
    seconds_per_task: float | None = None


class Difference(NamedTuple):
    """The difference of two measurements, over the same seeds or tasks if ``paired``, else of two means."""

    mean: float
    ci95: float | None
    paired: bool


@dataclass
class Comparison:
    """Rows and columns, and measurements by row number and column.

    Attributes:
        rows: runs with equal settings.
        columns: the measures and their names.
        cells: the measurements; missing for rows without the measure.
        common: overrides shared by all runs.
        best: the row with the highest mean of each column.
        top: the best row of each column and the rows that do not differ from it.
        differences: differences from the best row, or from the reference.
        average_ranks: the average rank of each row over columns; None for a single column, unless rows are heads.
    """

    rows: list[Row]
    columns: dict[Column, str]
    cells: dict[tuple[int, Column], Measurement]
    common: str
    best: dict[Column, int] = field(default_factory=dict)
    top: dict[Column, set[int]] = field(default_factory=dict)
    differences: dict[tuple[int, Column], Difference] = field(default_factory=dict)
    average_ranks: np.ndarray | None = None

    @property
    def transductive_columns(self) -> set[Column]:
        """The columns with transductive measurements only, whose names are marked; none if all rows are marked."""
        inductive = {column for (_, column), cell in self.cells.items() if not cell.transductive}
        return set() if all(row.transductive for row in self.rows) else self.columns.keys() - inductive


def compare_runs(runs: Sequence[Run], against: str | None = None) -> Comparison:
    """Compare finished runs.

    Args:
        runs: tested runs.
        against: overrides that identify the reference row of differences; by default the best row of each column.

    Raises:
        UsageError: if ``against`` identifies no row, or several.
    """
    if not runs:
        return Comparison([], {}, {}, "")
    rows, columns = group_rows(runs), find_columns(runs)
    cells = {(i, column): cell for i, row in enumerate(rows) for column in columns if (cell := measure(row, column))}
    columns = {column: name for column, name in columns.items() if any(column == own for _, own in cells)}
    always = [key for key in runs[0].values if key in ("head", "norm", "backbone", "dataset")]
    keys = dict.fromkeys([*always, *(key for run in runs for key in run.settings)])
    varying = varying_keys({key: run.values.get(key) for key in keys} for run in runs)
    shared = named_by_folder(runs, (key for key in keys if key not in varying))
    common = format_overrides(runs[0].values | {"dataset": runs[0].dataset}, shared)
    comparison = Comparison(rows, columns, cells, common)
    rank_rows(comparison, None if against is None else find_row(rows, against))
    return comparison


def rank_rows(comparison: Comparison, reference: int | None = None, least: int = 2) -> None:
    """Set the best rows, the differences and the average ranks of a comparison.

    Args:
        comparison: the comparison, with measurements.
        reference: the row to which differences are taken; None for the best of each column.
        least: the minimum number of columns for average ranks.
    """
    cells = comparison.cells
    for column in comparison.columns:
        means = {i: cell.mean for (i, own), cell in cells.items() if own == column and cell.mean is not None}
        if column.baseline or not means:
            continue
        comparison.best[column] = best = max(means, key=lambda i: means[i])
        measured = {i: cells[i, column] for i in means}
        gaps = {i: difference(cell, measured[best]) for i, cell in measured.items()}
        # With other seeds than the best row, a row may be ahead of it in those that both have.
        level = {i for i, gap in gaps.items() if gap.mean > 0 or contains_zero(gap._asdict())}
        comparison.top[column] = {best, *level}
        base = best if reference is None else reference
        if base in measured:
            gaps = {i: difference(cell, measured[base]) for i, cell in measured.items()}
            gaps[base] = Difference(0.0, None, True)
            comparison.differences |= {(i, column): gap for i, gap in gaps.items()}
    comparison.average_ranks = average_ranks(comparison, least)


def measure(row: Row, column: Column) -> Measurement | None:
    """Return the measurement of a row in a column; None if the runs do not have the measure."""
    measured = [(run, value) for run in row.runs if (value := column.measure(run))]
    if not measured:
        return None
    runs, values = zip(*measured, strict=True)
    if column.baseline and all(value == values[0] for value in values):  # untrained: seeds are not repetitions
        runs, values = runs[:1], values[:1]
    accuracies = [column.task_accuracies(run) for run in runs]
    streams = {task_stream(run) for run in runs}
    same = len(streams) == 1 and None not in streams and all(each.keys() == accuracies[0].keys() for each in accuracies)
    averages = {task: float(np.mean([each[task] for each in accuracies])) for task in accuracies[0]} if same else {}
    count = max(value.get("tasks") or len(each) for value, each in zip(values, accuracies, strict=True))
    summary = summarize_seeds(values)
    return Measurement(
        mean=summary["mean"],
        ci95=summary["ci95"],
        error=summary["se"],
        tasks=count,
        runs=list(runs),
        accuracies=averages,
        seeds={run.seed: value["mean"] for run, value in zip(runs, values, strict=True)},
        task_stream=streams.pop() if same else None,
        failed=sum(value.get("failed", 0) for value in values),
        transductive=not column.baseline and all(run.is_transductive(column.head_of(run)) for run in runs),
        seconds_per_task=float(np.mean(seconds)) if (seconds := [*filter(None, map(column.seconds, runs))]) else None,
    )


def difference(ours: Measurement, theirs: Measurement) -> Difference:
    """Return ``ours`` minus ``theirs``.

    They are paired by the seeds that both have, if there are two or more, else by test tasks if these are equal, else
    unpaired. Neither may have diverged.
    """
    assert ours.mean is not None
    assert theirs.mean is not None
    same = ours.task_stream and ours.task_stream == theirs.task_stream
    same = same and ours.accuracies.keys() == theirs.accuracies.keys()
    if same and (shared := shared_seeds([ours, theirs])):
        pairs = interval([ours.seeds[seed] - theirs.seeds[seed] for seed in shared])
        return Difference(pairs["mean"], pairs["ci95"], True)
    if same and ours.accuracies:
        pairs = interval([value - theirs.accuracies[task] for task, value in ours.accuracies.items()])
        return Difference(pairs["mean"], pairs["ci95"], True)
    ci95 = None if ours.ci95 is None or theirs.ci95 is None else math.hypot(ours.ci95, theirs.ci95)
    return Difference(ours.mean - theirs.mean, ci95, False)


def shared_seeds(cells: Sequence[Measurement]) -> list[int]:
    """Return the seeds that all measurements have, if there are two or more; else none."""
    shared = [seed for seed in cells[0].seeds if all(seed in cell.seeds for cell in cells)]
    return shared if len(shared) > 1 else []


def average_ranks(comparison: Comparison, least: int) -> np.ndarray | None:
    """Return the average rank of each row over columns, ``least`` or more, in which all rows share the test tasks."""
    rows, columns = range(len(comparison.rows)), comparison.columns
    pooled = {column._replace(source=None) for column in columns if column.source is not None}
    ranked = []
    for column in columns:
        found = [comparison.cells.get((i, column)) for i in rows]
        cells = [cell for cell in found if cell is not None and cell.mean is not None]
        if column.baseline or column in pooled or len(cells) < len(rows):
            continue
        if all(difference(cell, cells[0]).paired for cell in cells):
            seeds = shared_seeds(cells)
            units: list[Mapping[Any, float]] = [cell.seeds if seeds else cell.accuracies for cell in cells]
            values = np.array([[unit[key] for key in seeds or units[0]] for unit in units])
            ranked.append(ranks(values))
    return np.mean(ranked, 0) if len(ranked) >= least and len(rows) > 1 else None


def find_row(rows: Sequence[Row], against: str) -> int:
    """Return the number of the row with the overrides ``against``."""
    found = []
    for number, row in enumerate(rows):
        overrides = {f"{key}={format_value(value)}" for key, value in (row.runs[0].values | row.settings).items()}
        if set(against.split()) <= overrides:
            found.append(number)
    if len(found) != 1:
        raise UsageError(
            f"expected against to identify one row, got {against!r}, which fits {len(found)} of these: "
            f'{"; ".join(row.label for row in rows)}: type against="{rows[0].label}"'
        )
    return found[0]


def task_stream(run: Run) -> tuple | None:
    """Return the values of :data:`TASK_STREAM`, and the images of the tests; None if the run did not record them."""
    if not all(key in run.values for key in TASK_STREAM):
        return None
    return (*(run.values[key] for key in TASK_STREAM), canonical(run.tested_images))
