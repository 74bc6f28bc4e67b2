"""Specify the tasks of a split, and check that a dataset has enough classes and images for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metafew.config.option_values import check_integer
from metafew.data.sources import Category
from metafew.errors import UsageError

NATURAL = "natural"
"""The shot of Meta-Dataset's tasks, drawn for each class, roughly in proportion to the number of its images."""


@dataclass(frozen=True)
class TaskSpec:
    """The shape, number and seed of the tasks of a split.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        way: number of classes in a task, or ``"a..b"`` for a number drawn uniformly for each task.
        shot: number of support images of each class, likewise; or ``"natural"`` for Meta-Dataset's tasks, whose way is
            at most the number of classes in the group and whose shots differ from class to class.
        query: number of query images of each class; with natural shots the largest number.
        tasks: number of tasks in a meta-batch, over all processes; evaluation on cached features may use more.
        total: total number of tasks.
        seed: seed of the sequence of tasks.
        support: largest number of support images of a task with natural shots.
    """

    split: str
    way: int | str
    shot: int | str
    query: int
    tasks: int
    total: int
    seed: int
    support: int = 500

    def __post_init__(self):
        for word in ("way",) if self.natural else ("way", "shot"):
            self.bounds(word)
        least = {"query": int(self.split != "train"), "support": self.bounds("way")[1] if self.natural else 1}
        for word in ("query", "tasks", "total", "support"):
            check_integer(f"{self.split}.{word}", getattr(self, word), least.get(word, 1), max(1, least.get(word, 1)))

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
        """The smallest and largest number of support images of a task."""
        way, ways = self.bounds("way")
        if self.natural:
            return way, self.support
        shot, shots = self.bounds("shot")
        return way * shot, ways * shots

    @property
    def images(self) -> tuple[int, int]:
        """The smallest and largest number of images of a task with all its queries; natural tasks may have fewer."""
        (context, contexts), (way, ways) = self.contexts, self.bounds("way")
        return context + way * self.query, contexts + ways * self.query

    def check_drawable(self, categories: Sequence[Category], dataset: str) -> None:
        """Raise UsageError unless every task of this specification can be drawn from ``categories``."""
        where = f"the {self.split} split of dataset={dataset}"
        if not categories:
            raise UsageError(
                f"{self.split}.way={self.way} needs classes, but {where} has no classes: add some, or type stages= "
                "without those that need it"
            )
        smallest = min(categories, key=lambda category: len(category.keys))
        count, (low, way) = len(smallest.keys), self.bounds("way")
        if self.natural:
            if not class_groups([category.group for category in categories], low):
                raise UsageError(
                    f"{self.split}.way={self.way} needs {low} classes of one group, but {where} has no such group "
                    f"among its {len(categories)} classes: type {self.split}.way=2..{way}"
                )
            if count < 2:
                raise UsageError(
                    f"{self.split}.shot=natural needs two images of each class, but class '{smallest.name}' in {where} "
                    f"has {count}: add images to it, or remove it"
                )
            return
        _, shot = self.bounds("shot")
        if way > len(categories):
            raise UsageError(
                f"{self.split}.way={self.way} needs {way} classes, but {where} has {len(categories)}: "
                f"type {self.split}.way={len(categories)} or less"
            )
        if shot + self.query > count:
            smaller = f"query={count - shot}" if count > shot else f"shot={count - 1}"
            advice = f"type {self.split}.{smaller} or less" if count > 1 else "add images to it, or remove it"
            raise UsageError(
                f"{self.split}.shot={self.shot} and {self.split}.query={self.query} need {shot + self.query} images "
                f"of each class, but class '{smallest.name}' in {where} has {count}: {advice}"
            )


def class_groups(groups: Sequence[str], least: int) -> list[np.ndarray]:
    """Return the indices of the classes of each group of at least ``least`` classes, given the group of each class.

    >>> class_groups(["Greek", "Latin", "Greek", "Latin", "Runes"], 2)
    [array([0, 2]), array([1, 3])]
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return [np.array(indices) for indices in members.values() if len(indices) >= least]
