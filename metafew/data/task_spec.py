"""Specify the tasks of a split, and determine what a dataset lacks for them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from metafew.config.option_values import check_choice, check_integer, check_range
from metafew.data.sources import Category
from metafew.errors import UsageError

NATURAL = "natural"
"""The shot of Meta-Dataset's tasks, drawn per class, roughly in proportion to its number of images."""

BALANCES = ("balanced", "dirichlet")
LEAST_CONCENTRATION = 1e-3
"""Below this, proportions cannot be drawn from a Dirichlet distribution in floating point."""


class Shortage(NamedTuple):
    """A shortage of classes or images in a split for the tasks of a run.

    Attributes:
        problem: the requirement, and what the split has.
        options: values of options with which the split would suffice; empty if there are none.
        images: whether images of a class are missing, rather than classes.
    """

    problem: str
    options: dict[str, int | str] = {}  # noqa: RUF012 - a tuple has no mutable state, and nobody changes this
    images: bool = False


def task_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a split, such as ``cfg.val``, that determine its tasks and are not their number or seed."""
    return {key: options[key] for key in ("way", "shot", "query", "support", "balance", "dirichlet") if key in options}


@dataclass(frozen=True)
class TaskSpec:
    """The shape, number and seed of the tasks of a split.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        way: number of classes per task, or ``"a..b"`` for a number drawn uniformly per task.
        shot: number of support images per class, or a range as for ``way``; or ``"natural"`` for Meta-Dataset's tasks,
            whose way is at most the number of classes in the group and whose shots differ between classes.
        query: number of query images per class; with natural shots, the maximum.
        tasks: number of tasks per meta-batch, over all processes; evaluation may use more.
        total: total number of tasks; 0 for training without validation.
        seed: seed of the sequence of tasks.
        support: maximum number of support images of a task with natural shots.
        balance: ``balanced`` for equal numbers of queries of each class, or ``dirichlet`` for the same total, divided
            in proportions that are drawn per task.
        dirichlet: concentration of the symmetric Dirichlet distribution of these proportions.
    """

    split: str
    way: int | str
    shot: int | str
    query: int
    tasks: int
    total: int
    seed: int
    support: int = 500
    balance: str = "balanced"
    dirichlet: float = 2.0

    def __post_init__(self):
        for word in ("way",) if self.natural else ("way", "shot"):
            self.bounds(word)
        least = {"query": int(self.split != "train"), "total": int(self.split != "val")}
        least["support"] = self.bounds("way")[1] if self.natural else 1
        for word in ("query", "tasks", "total", "support"):
            check_integer(f"{self.split}.{word}", getattr(self, word), least.get(word, 1), max(1, least.get(word, 1)))
        check_integer("seed", self.seed, 0)
        check_choice(f"{self.split}.balance", self.balance, BALANCES)
        check_range(f"{self.split}.dirichlet", self.dirichlet, LEAST_CONCENTRATION, math.inf)

    @property
    def natural(self) -> bool:
        """Whether tasks are drawn as in Meta-Dataset."""
        return self.shot == NATURAL

    def bounds(self, word: str) -> tuple[int, int]:
        """Return the smallest and largest value of ``way`` or ``shot``."""
        value, least = getattr(self, word), 2 if word == "way" else 1
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(value))
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not least <= low <= high:
            raise UsageError(
                f"expected {self.split}.{word} to be an integer of at least {least}, or a range such as "
                f"{least}..{least + 8}{', or natural' * (word == 'shot')}, got {value}: "
                f"type {self.split}.{word}={least + 3}"
            )
        return low, high

    @property
    def contexts(self) -> tuple[int, int]:
        """The smallest and largest number of support images per task."""
        way, ways = self.bounds("way")
        if self.natural:
            return way, self.support
        shot, shots = self.bounds("shot")
        return way * shot, ways * shots

    @property
    def images(self) -> tuple[int, int]:
        """The smallest and largest number of images per task, with all queries; natural tasks may have fewer."""
        (context, contexts), (way, ways) = self.contexts, self.bounds("way")
        return context + way * self.query, contexts + ways * self.query

    def shortages(self, categories: Sequence[Category], dataset: str, options: str | None = None) -> list[Shortage]:
        """Return the shortages of ``categories`` for tasks of this specification; an empty list if all can be drawn.

        Args:
            categories: the classes of the split.
            dataset: the name of the dataset in messages.
            options: the group of options that specify these tasks; None for the name of the split.
        """
        group, where = options or self.split, f"the {self.split} split of dataset={dataset}"
        if len(categories) < 2:
            return [Shortage(f"tasks need two classes or more, but {where} has {counted(categories)}")]
        found = (self._missing_classes(categories, group, where), self._missing_images(categories, group, where))
        return [shortage for shortage in found if shortage is not None]

    def never_drawn(self, categories: Sequence[Category]) -> int:
        """Return the number of classes in groups that are too small for a task with natural shots."""
        if not self.natural:
            return 0
        groups = class_groups([category.group for category in categories], self.bounds("way")[0])
        return len(categories) - sum(map(len, groups))

    def _missing_classes(self, categories: Sequence[Category], group: str, where: str) -> Shortage | None:
        low, high = self.bounds("way")
        if not self.natural:
            if high <= len(categories):
                return None
            problem = f"{group}.way={self.way} needs {high} classes, but {where} has {len(categories)}"
            return Shortage(problem, {f"{group}.way": capped(low, high, len(categories))})
        if class_groups([category.group for category in categories], low):
            return None
        largest = max(Counter(category.group for category in categories).values())
        problem = (
            f"{group}.way={self.way} needs {low} classes of one group, but {where} has no such group among its "
            f"{len(categories)} classes"
        )
        return Shortage(problem, {f"{group}.way": capped(2, high, largest)} if largest > 1 else {})

    def _missing_images(self, categories: Sequence[Category], group: str, where: str) -> Shortage | None:
        smallest = min(categories, key=lambda category: len(category.keys))
        count, least = len(smallest.keys), min(self.query, 1)
        has = f"of each class, but class '{smallest.name}' in {where} has {count}"
        if self.natural:
            return Shortage(f"{group}.shot=natural needs two images {has}", images=True) if count < 2 else None
        low, high = self.bounds("shot")
        if high + self.query <= count:
            return None
        problem = f"{group}.shot={self.shot} and {group}.query={self.query} need {high + self.query} images {has}"
        if count < 1 + least:
            return Shortage(problem, images=True)
        words: dict[str, int | str] = {}
        if high + least > count:
            words[f"{group}.shot"] = capped(low, high, count - least)
        if self.query > (query := max(count - high, least)):
            words[f"{group}.query"] = query
        return Shortage(problem, words)


def capped(low: int, high: int, most: int) -> int | str:
    """Return the range ``low..high``, cut off above ``most``, as the value of an option.

    >>> capped(5, 20, 12), capped(5, 20, 5), capped(5, 5, 3)
    ('5..12', 5, 3)
    """
    return f"{low}..{most}" if low < min(most, high) else most


def counted(categories: Sequence[Category]) -> str:
    """Describe a number of classes that is too small for a task."""
    return f"one class, '{categories[0].name}'" if categories else "no classes"


def class_groups(groups: Sequence[str], least: int) -> list[np.ndarray]:
    """Return the class indices of each group with at least ``least`` classes, given the group of each class.

    >>> class_groups(["Greek", "Latin", "Greek", "Latin", "Runes"], 2)
    [array([0, 2]), array([1, 3])]
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return [np.array(indices) for indices in members.values() if len(indices) >= least]
