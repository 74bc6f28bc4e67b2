"""What :func:`metafew.evaluate` and :func:`metafew.classify` return."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from torch import Tensor

from metafew.analysis.text_table import DAGGER, Bold, TextTable, in_groups
from metafew.evaluation.statistics import (
    Interval,
    contains_zero,
    differences_to_best,
    format_difference,
    format_percent,
    interval,
)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The accuracies of heads on the same tasks, returned by :func:`metafew.evaluate`. Printing it shows a table.

    Attributes:
        title: the tasks.
        accuracies: the accuracy of each task ``(tasks,)``, by head.
        measures: by head, the mean accuracy, the half width ``ci95`` of its 95 % interval, the number of tasks and of
            failed ones, and ``transductive``: whether a query may change the predictions of others.
        baseline: the name of 1-nearest-neighbour on the features, which is measured like a head.
        left_out: the heads that ``heads="all"`` leaves out, by reason.
    """

    title: str
    accuracies: dict[str, np.ndarray]
    measures: dict[str, Interval]
    baseline: str
    left_out: str = ""

    @property
    def heads(self) -> list[str]:
        """The names of the heads, without the baseline."""
        return [name for name in self.measures if name != self.baseline]

    @property
    def mean(self) -> dict[str, float]:
        """The mean accuracy of each head."""
        return {name: measure["mean"] for name, measure in self.measures.items()}

    @property
    def ci95(self) -> dict[str, float | None]:
        """The half width of the 95 % confidence interval of each mean; None for a single task."""
        return {name: measure["ci95"] for name, measure in self.measures.items()}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row for each head, with the baseline last, as ``pandas.DataFrame(table.rows)`` takes them."""
        return [{"head": name, **measure} for name, measure in self.measures.items()]

    @property
    def best(self) -> str:
        """The head with the highest mean accuracy."""
        return self.differences[self.baseline]["to"]

    @property
    def differences(self) -> dict[str, Interval]:
        """Paired differences of heads and the baseline from the best head, named in ``to``: see :meth:`difference`."""
        return differences_to_best(self.accuracies, self.heads)

    def to_dict(self) -> dict[str, Interval]:
        """Return the measures of each head as plain values, by its name."""
        return {name: dict(measure) for name, measure in self.measures.items()}

    def difference(self, head: str, other: str) -> Interval:
        """Return mean, ``ci95`` and number of tasks of the paired difference ``head - other``.

        The interval is that of the differences on the same tasks, which is usually narrower than that of the difference
        of two independent means.
        """
        return interval(self.accuracies[head] - self.accuracies[other])

    def table(self) -> TextTable:
        """Return the table that is shown, which also renders to Markdown, LaTeX and HTML."""
        gaps, rows = self.differences, []
        best = gaps[self.baseline]["to"]
        heads = sorted(self.heads, key=lambda name: self.measures[name]["transductive"])
        for name in (*heads, self.baseline):
            measure = self.measures[name]
            cells = [format_percent(measure), "–" if name == best else format_difference(gaps[name])]
            top = name == best or contains_zero(gaps[name])
            rows.append([f"{name} †" if measure["transductive"] else name, *(map(Bold, cells) if top else cells)])
        marks = [self.measures[name]["transductive"] for name in heads]
        rows = [*in_groups(rows[:-1], marks), rows[-1]]
        notes = [DAGGER] * any(marks)
        notes += [f"left out: {self.left_out}"] * bool(self.left_out)
        return TextTable(self.title, ["accuracy (%)", f"difference from {best} (points)"], rows, notes)

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=100, color_system=None, force_jupyter=False)
        console.print(self.table().rich(), *self.table().notes, sep="\n")
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined]  # of StringIO

    def _repr_markdown_(self) -> str:
        """Return the table as notebooks show it."""
        return self.table().markdown()


class Classification(NamedTuple):
    """The classes of queries, returned by :func:`metafew.classify`.

    Attributes:
        labels: the most probable label of each query; None where logits are not finite.
        probabilities: ``(q, w)`` in float32, with one column per class in ``classes``.
        classes: the labels of the support set in sorted order, or in order of first occurrence.
    """

    labels: list
    probabilities: Tensor
    classes: list
