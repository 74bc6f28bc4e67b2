"""Measurements for the rows and columns of an experiment. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from metafew.analysis.compare.comparison import Measurement
from metafew.analysis.compare.runs import Run
from metafew.evaluation.statistics import summarize_seeds
from metafew.experiments.plan import Cell

ACCURACY = re.compile(r"test/(?P<head>\w+)/(?:shot(?P<shot>\d+)/)?(?:(?P<source>\w+)/)?accuracy")
TASK_STREAM = ("experiment",)
"""All cells of an experiment are tested on the same tasks."""


def measure_row(cells: Sequence[Cell], column: str | dict, reference: Sequence[Cell]) -> Measurement | None:
    """Return the measurement of one row over its seeds; None before any of its cells finished.

    The mean is None if a training diverged.

    Args:
        cells: the cells of one row, one per seed; unfinished ones are ignored.
        column: a path into the metrics of results.json (``test/svm/accuracy``, or ``test/trained/accuracy`` for the
            trained head) or into analysis.json (``clustering/variance_ratio``), or, for learning curves, ``{reach:
            0.95, of: ROW, in: steps}``: the time, in ``steps`` or ``seconds``, at which validation accuracy first
            reached that fraction of the final accuracy of row ROW.
        reference: the cells of that row.
    """
    reference_of = {cell.seed: cell for cell in reference if cell.finished}
    found: dict[int, dict] = {cell.seed: {"mean": None} for cell in cells if cell.diverged}
    runs: list[Run] = [Run.in_folder(cell.test.folder) for cell in cells if cell.diverged]
    for cell in (cell for cell in cells if cell.finished):
        run = Run.in_folder(cell.test.folder)
        if isinstance(column, str):
            value = look_up(column, run)
        else:
            value = time_to_reach(cell, reference_of.get(cell.seed), column)
        if value is not None:
            found[cell.seed] = value
            runs.append(run)
    if not found:
        return None
    values = list(found.values())
    accuracies = task_accuracies(runs[0], column) if len(runs) == 1 else {}
    return Measurement(
        **{"error" if name == "se" else name: value for name, value in summarize_seeds(values).items()},
        tasks=values[0].get("tasks", 0),
        runs=runs,
        accuracies=accuracies,
        seeds={seed: value["mean"] for seed, value in found.items()},
        task_stream=TASK_STREAM,
        lower_bound=any(value.get("over") for value in values),
        failed=sum(value.get("failed", 0) for value in values),
        transductive=any(run.is_transductive(measured_head(run, column)) for run in runs),
    )


def look_up(path: str, run: Run) -> dict | None:
    """Return the measure at a path, with its interval, if any."""
    metrics = run.report.get("metrics", {})
    if (path := name_trained_head(path, run)) in metrics:
        return metrics[path]
    value: Any = run.analysis
    for key in path.split("/"):
        if isinstance(value, list):
            value = value[int(key)] if int(key) < len(value) else None
        else:
            value = (value or {}).get(key)
    return {"mean": value, "ci95": None} if isinstance(value, int | float) else value


def name_trained_head(path: str, run: Run) -> str:
    """Replace ``trained`` in a path with the name of the trained head."""
    return path.replace("/trained/", f"/{run.trained_head}/")


def parse_accuracy(run: Run, column: str | dict) -> re.Match | None:
    """Return the head, shot and dataset of a column of accuracies; None for other measures."""
    return ACCURACY.fullmatch(name_trained_head(column, run)) if isinstance(column, str) else None


def measured_head(run: Run, column: str | dict) -> str | None:
    """Return the head of a column of accuracies; None for other measures."""
    match = parse_accuracy(run, column)
    return match["head"] if match else None


def task_accuracies(run: Run, column: str | dict) -> dict:
    """Return the accuracy of each test task of a column; empty for other measures, and without results."""
    match, shots = parse_accuracy(run, column), [str(shot) for shot in run.shots]
    if not match or match["shot"] not in (None, *shots):
        return {}
    number = shots.index(match["shot"]) if match["shot"] else 0
    return run.task_accuracies(match["head"], number, match["source"])


def time_to_reach(cell: Cell, reference: Cell | None, column: dict) -> dict | None:
    """Return the time at which validation first reached a fraction of the final accuracy of ``reference``.

    If it never did, the time of the last validation is a lower bound, marked as ``over``.
    """
    if reference is None:
        return None
    run = Run.in_folder(cell.fit.folder)
    curve, goal = run.validations, Run.in_folder(reference.fit.folder).validations
    scale = run.seconds_per_step if column["in"] == "seconds" else 1
    if not curve or not goal or not scale:
        return None
    target = column["reach"] * goal[max(goal)]
    step = next((step for step, accuracy in sorted(curve.items()) if accuracy >= target), None)
    return {"mean": scale * (max(curve) if step is None else step), "ci95": None, "over": step is None}
