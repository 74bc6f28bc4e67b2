"""What the cells of an experiment measured: the figure of each row in each column. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metafew.analysis.compare import comparison
from metafew.analysis.compare.runs import Run
from metafew.evaluation.statistics import summarized
from metafew.experiments.plan import Cell

ACCURACY = re.compile(r"test/(?P<head>\w+)/(?:shot(?P<shot>\d+)/)?(?:(?P<source>\w+)/)?accuracy")
DRAWN = ("the test tasks of the experiment",)


@dataclass(frozen=True)
class Measured:
    """One figure of the table.

    Args:
        figure: its mean over tasks and seeds, and what differences to others are taken from.
        over: whether it would have been larger, had some training gone on.
    """

    figure: comparison.Cell
    over: bool = False

    def summary(self) -> dict:
        """Return what results.json holds of it."""
        kept = {"mean": self.figure.mean, "ci95": self.figure.ci95, "tasks": self.figure.tasks}
        seeds = {"seeds": {str(seed): mean for seed, mean in self.figure.seeds.items()}}
        return kept | seeds | ({"over": True} if self.over else {})


def measured(cells: Sequence[Cell], column: str | dict, reference: Sequence[Cell]) -> Measured | None:
    """Return what the cells of one row measured, over their seeds; None where none did.

    Where a training diverged, the mean is None.

    Args:
        cells: of one row, one for each seed; those that are not finished are left out.
        column: a path into the metrics of results.json (``test/svm/accuracy``, and ``test/trained/accuracy`` for the
            trained head) or into analysis.json (``clustering/variance_ratio``), or for learning curves ``{reach: 0.95,
            of: ROW, in: steps}``: when validation accuracy first reached that part of what row ROW had in the end, in
            ``steps`` or ``seconds``.
        reference: the cells of that row.
    """
    of_seed = {cell.seed: cell for cell in reference if cell.finished}
    found = {cell.seed: {"mean": None} for cell in cells if cell.diverged}
    for cell in (cell for cell in cells if cell.finished):
        if isinstance(column, str):
            value = at(column, Run.of(cell.test.folder))
        else:
            value = reached(cell, of_seed.get(cell.seed), column)
        if value is not None:
            found[cell.seed] = value
    if not found:
        return None
    runs = [Run.of(cell.test.folder) for cell in cells if cell.seed in found]
    values = list(found.values())
    tasks = of_tasks(runs[0], column) if len(runs) == 1 else {}
    seeds = {seed: value["mean"] for seed, value in found.items()}
    figure = comparison.Cell(*summarized(values).values(), values[0].get("tasks", 0), runs, tasks, seeds, DRAWN)
    return Measured(figure, any(value.get("over") for value in values))


def at(path: str, run: Run) -> dict | None:
    """Return the measure at a path, with its interval if it has one."""
    metrics = run.report.get("metrics", {})
    if (path := resolved(path, run)) in metrics:
        return metrics[path]
    value: Any = run.analysis
    for key in path.split("/"):
        if isinstance(value, list):
            value = value[int(key)] if int(key) < len(value) else None
        else:
            value = (value or {}).get(key)
    return {"mean": value, "ci95": None} if isinstance(value, int | float) else value


def resolved(path: str, run: Run) -> str:
    """Return the path with the name of the trained head in it, where that is meant."""
    return path.replace("/trained/", f"/{run.trained}/")


def of_tasks(run: Run, column: str | dict) -> dict:
    """Return the accuracy of each test task behind a column; nothing where it is none of tasks."""
    match = ACCURACY.fullmatch(resolved(column, run)) if isinstance(column, str) else None
    if not match:
        return {}
    number = [str(shot) for shot in run.shots].index(match["shot"]) if match["shot"] else 0
    return run.of_tasks(match["head"], number, match["source"])


def reached(cell: Cell, reference: Cell | None, column: dict) -> dict | None:
    """Return when validation first reached a part of what ``reference`` had in the end.

    Where it never did, the last validation stands in its place, marked as ``over``: it would take longer.
    """
    if reference is None:
        return None
    run = Run.of(cell.fit.folder)
    curve, goal = run.validations, Run.of(reference.fit.folder).validations
    scale = run.pace if column["in"] == "seconds" else 1
    if not curve or not goal or not scale:
        return None
    wanted = column["reach"] * goal[max(goal)]
    step = next((step for step, accuracy in sorted(curve.items()) if accuracy >= wanted), None)
    return {"mean": scale * (step or max(curve)), "ci95": None, "over": step is None}
