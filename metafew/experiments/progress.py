"""The progress of the trainings of an experiment, and the time that they take. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from metafew.analysis.compare.runs import Run
from metafew.experiments.plan import Cell, Command

MAX_STEPS = re.compile(r"trainer\.max_steps=(\d+)")


class Progress:
    """The steps of the trainings of an experiment, and the speed of each since it was last seen without a new step.

    Args:
        cells: the cells.
        begin: the time, in seconds.
    """

    def __init__(self, cells: Sequence[Cell], begin: float):
        self.cells = {cell.fit: cell for cell in reversed(cells)}.values()  # the first row of those that share it
        self.first = {cell.fit: (begin, recorded_steps(cell.fit)) for cell in self.cells}

    def lines(self, now: float) -> Iterator[str]:
        """Yield steps, speed and remaining time of each training that has advanced, at the time ``now``."""
        for cell in self.cells:
            begin, before = self.first[cell.fit]
            done, total = recorded_steps(cell.fit), planned_steps(cell.fit)
            if done == before:
                self.first[cell.fit] = now, done
            if total is not None and before < done < total:
                pace = (now - begin) / (done - before)
                yield (
                    f"{cell.row}, seed {cell.seed}: {done:,} of {total:,} steps, {pace:.2g} s a step, "
                    f"about {format_minutes((total - done) * pace / 60)} left"
                )


def recorded_steps(training: Command) -> int:
    """Return the number of steps of a training in its metrics.csv; 0 before the first row."""
    return max((int(row["step"] or 0) + 1 for row in Run.in_folder(training.folder).csv_rows("metrics.csv")), default=0)


def planned_steps(training: Command) -> int | None:
    """Return the number of steps set by the overrides of a training, or None if none of them sets it."""
    return next((int(match[1]) for word in reversed(training.overrides) if (match := MAX_STEPS.fullmatch(word))), None)


def steps_so_far(cell: Cell) -> str | None:
    """Return a training's progress, such as ``12,000 of 60,000 steps``; None before its first step and after its last.

    It is also None if no override of the training sets the number of steps.
    """
    total = planned_steps(cell.fit)
    if total is None or cell.fit.finished:
        return None
    done = recorded_steps(cell.fit)
    return f"{done:,} of {total:,} steps" if done else None


def describe_cost(trainings: int, jobs: int, minutes: float | None) -> str:
    """Return the time that trainings with their tests and further heads will take, a few at a time.

    Args:
        trainings: their number.
        jobs: how many run at a time, each on one core.
        minutes: the measured time of one training with these; None if it was not measured.

    >>> describe_cost(7, 2, 180), describe_cost(2, 1, None)
    ('about 12 h at 180 minutes a training', 'time not measured yet')
    """
    if minutes is None:
        return "time not measured yet"
    return f"about {format_minutes(-(-trainings // jobs) * minutes)} at {minutes:g} minutes a training"


def format_minutes(minutes: float) -> str:
    """Format a time.

    >>> format_minutes(90), format_minutes(300)
    ('90 min', '5 h')
    """
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
