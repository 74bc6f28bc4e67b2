"""Tasks. Task ``i`` of a split is a pure function of (seed, split, i)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from metafew.data.augment import Chain
from metafew.data.store import Split
from metafew.data.task_spec import TaskSpec, groups
from metafew.episode import Episode, Labelled, Views

STREAMS = {"train": 0, "val": 1, "test": 2}


class Side(NamedTuple):
    """The support or the queries of a task before their images are read.

    Attributes:
        rows: ``(n,)`` rows of the split's images.
        classes: ``(n,)`` classes of the split that they are drawn for, which say how an image is turned.
        labels: ``(n,)`` int64.
        views: ``(n, k)`` parameters of the views that they are to be seen through, or None.
    """

    rows: np.ndarray
    classes: np.ndarray
    labels: np.ndarray
    views: np.ndarray | None


class Drawn(NamedTuple):
    """A task before its images are read.

    Attributes:
        support: examples given.
        query: examples to be labelled.
        way: number of classes.
        index: the number of the task.
        source: the number of its dataset, in a mixture of several.
    """

    support: Side
    query: Side
    way: int
    index: int
    source: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """What tasks have in common that can be stacked."""
        return self.way, len(self.support.rows), len(self.query.rows), self.source


class Sampler:
    """Draws the tasks of a plan.

    A task draws its classes, then for each class its queries, then its support, so that queries do not depend on the
    shot and an ``n``-shot support is part of the ``n+1``-shot one.

    Args:
        split: the images.
        plan: what tasks look like.
        views: random views of the images, or None.
    """

    def __init__(self, split: Split, plan: TaskSpec, views: Chain | None):
        self.split, self.plan, self.views = split, plan, views

    def batch(self, indices: Iterable[int]) -> list[Episode]:
        """Return a meta-batch: tasks of equal shape stacked, in the order in which shapes first occur."""
        same: dict[tuple, list[Drawn]] = {}
        for task in map(self.draw, indices):
            same.setdefault(task.shape, []).append(task)
        return [self.stack(tasks) for tasks in same.values()]

    def task(self, index: int) -> Episode:
        """Return task ``index`` as an episode of one task, images in uint8."""
        return self.stack([self.draw(index)])

    def stack(self, tasks: Sequence[Drawn]) -> Episode:
        """Return tasks of one shape as one episode, images in uint8."""
        support, support_ids, given = self._read([task.support for task in tasks])
        query, query_ids, asked = self._read([task.query for task in tasks])
        return Episode(
            support=support,
            query=query,
            way=tasks[0].way,
            index=torch.tensor([task.index for task in tasks]),
            views=self.views and Views(self.views, given, asked),
            source=tasks[0].source,
            ids=(support_ids, query_ids),
        )

    def _read(self, sides: Sequence[Side]) -> tuple[Labelled, torch.Tensor, torch.Tensor | None]:
        """Return one side of some tasks: images and labels, numbers of the images, and parameters of their views."""
        rows, classes, labels, views = (
            None if parts[0] is None else np.stack(parts) for parts in zip(*sides, strict=True)
        )
        turns = self.split.turns[classes]
        return (
            Labelled(torch.from_numpy(self.split.gather(rows, turns)), torch.from_numpy(labels)),
            torch.from_numpy(self.split.ids(rows, turns)),
            None if views is None else torch.from_numpy(views),
        )

    def draw(self, index: int) -> Drawn:
        """Draw task ``index``."""
        rng = np.random.default_rng([self.plan.seed, STREAMS[self.plan.split], index])
        classes, query, shots = (self._natural if self.plan.natural else self._sizes)(rng)
        # All images are shuffled and all views drawn, as what follows in the stream must not depend on the shot.
        rows = [rng.permutation(self.split.rows[c]) for c in classes]
        views = self.views and [self.views.draw(rng, np.full(len(r), c)) for r, c in zip(rows, classes, strict=True)]

        def side(parts: list[slice]) -> Side:
            def cut(of_class: list[np.ndarray] | None) -> np.ndarray | None:
                return of_class and np.concatenate([values[part] for values, part in zip(of_class, parts, strict=True)])

            labels = np.repeat(np.arange(len(classes)), [part.stop - part.start for part in parts])
            return Side(cut(rows), classes[labels], labels, cut(views))

        asked, given = [slice(0, query)] * len(classes), [slice(query, query + shot) for shot in shots]
        return Drawn(side(given), side(asked), len(classes), index)

    def _sizes(self, rng: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray]:
        """Draw the classes of a task, the number of its queries, and the shot of each class."""
        # Both sizes are always drawn, so that a fixed shot meets the same classes as a drawn one.
        (way_low, way_high), (shot_low, shot_high) = self.plan.bounds("way"), self.plan.bounds("shot")
        sizes = rng.random(2)
        way = way_low + int(sizes[0] * (way_high - way_low + 1))
        shot = shot_low + int(sizes[1] * (shot_high - shot_low + 1))
        classes = rng.permutation(len(self.split.rows))[:way]
        return classes, self.plan.query, np.full(way, shot)

    def _natural(self, rng: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray]:
        """Draw the same as Meta-Dataset does (Triantafillou et al. 2020, section 3 and appendix): classes of one group.

        With ``n_c`` the images of class ``c``: ``q = min(query, floor(min n_c / 2))`` queries of each class; support
        size ``S = min(support, sum_c ceil(beta min(100, n_c - q)))`` with ``beta ~ U(0, 1]``; shots
        ``min(floor(R_c (S - way)) + 1, n_c - q)`` with ``R_c`` proportional to ``n_c exp(a_c)``,
        ``a_c ~ U[ln 1/2, ln 2)``.
        """
        low, high = self.plan.bounds("way")
        members = self._eligible[rng.integers(len(self._eligible))]
        way = rng.integers(low, min(high, len(members)) + 1)
        classes = rng.permutation(members)[:way]
        count = np.array([len(self.split.rows[c]) for c in classes])
        query = min(self.plan.query, count.min() // 2)
        room = count - query
        # floor(x u) + 1 with u in [0, 1) is ceil(x beta) with beta in (0, 1].
        support = min(self.plan.support, int((np.floor(rng.random() * np.minimum(100, room)) + 1).sum()))
        weight = count * np.exp(rng.uniform(np.log(0.5), np.log(2), way))
        return classes, query, np.minimum(np.floor(weight / weight.sum() * (support - way)).astype(int) + 1, room)

    @cached_property
    def _eligible(self) -> list[np.ndarray]:
        """The groups that a task with natural shots may be drawn from."""
        return groups(self.split.groups, self.plan.bounds("way")[0])


class Mixed(Sampler):
    """Draws tasks from several datasets, each task from one of them.

    Training draws the dataset, with equal chances. Evaluation takes one after the other, so that each is measured on
    the tasks that it has alone, whatever else is in the mixture.

    Args:
        samplers: one a dataset.
        plan: what tasks look like.
    """

    def __init__(self, samplers: Sequence[Sampler], plan: TaskSpec):
        self.samplers, self.plan = list(samplers), plan

    def draw(self, index: int) -> Drawn:
        """Draw task ``index``."""
        count, stream = len(self.samplers), [self.plan.seed, STREAMS[self.plan.split], index]
        if self.plan.split == "train":
            # A child stream: no task's own stream equals it.
            number = int(np.random.default_rng(np.random.SeedSequence(stream, spawn_key=(0,))).integers(count))
            task = self.samplers[number].draw(index)
        else:
            number = index % count
            task = self.samplers[number].draw(index // count)
        return task._replace(index=index, source=number)

    def stack(self, tasks: Sequence[Drawn]) -> Episode:
        """Return tasks of one shape, and so of one dataset, as one episode."""
        return self.samplers[tasks[0].source].stack(tasks)
