"""Samplers of tasks. Task ``i`` of a split is a pure function of (seed, split, i)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from metafew.data.augment import Chain
from metafew.data.store import Split
from metafew.data.task_spec import TaskSpec, class_groups
from metafew.episode import Episode, Labelled, Views

STREAMS = {"train": 0, "val": 1, "test": 2}


class DrawnRows(NamedTuple):
    """The support or query images of a task before they are read.

    Attributes:
        rows: ``(n,)`` rows of the split's images.
        classes: ``(n,)`` index of each image's class in the split, which determines its rotation.
        labels: ``(n,)`` int64.
        views: ``(n, k)`` parameters of their views; ``k`` is 0 without views.
    """

    rows: np.ndarray
    classes: np.ndarray
    labels: np.ndarray
    views: np.ndarray

    def permuted(self, rng: np.random.Generator) -> DrawnRows:
        """Return the same images in random order."""
        order = rng.permutation(len(self.rows))
        return DrawnRows(*(field[order] for field in self))


class DrawnTask(NamedTuple):
    """A task before its images are read.

    Attributes:
        support: the labelled examples.
        query: the examples to label.
        way: number of classes.
        index: index of the task in its split.
        source: index of its dataset in a mixture.
    """

    support: DrawnRows
    query: DrawnRows
    way: int
    index: int  # type: ignore[assignment]  # tuple.index is not used
    source: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The key that stacked tasks must share: way, support size, query size and source."""
        return self.way, len(self.support.rows), len(self.query.rows), self.source


class Sampler:
    """Draw the tasks of a split.

    A task draws its classes, then for each class first the queries and then the support, so that queries do not depend
    on the shot and the ``n``-shot support is a subset of the ``n+1``-shot one. A separate stream then shuffles queries
    and support, so that the position of an image carries no information about its class.

    With ``balance=dirichlet``, the same number of queries is divided among the classes by proportions from a symmetric
    Dirichlet distribution, as in Veilleux et al. 2021, *Realistic Evaluation of Transductive Few-Shot Learning*. The
    proportions come from a separate random stream, so classes and support are those of the balanced task. A class has
    at most as many queries as it has images outside the support set.

    Args:
        split: the images.
        spec: the shape, number and seed of the tasks.
        views: random views of the images, or None.
    """

    def __init__(self, split: Split, spec: TaskSpec, views: Chain | None):
        self.split, self.spec, self.views = split, spec, views

    def batch(self, indices: Iterable[int]) -> list[Episode]:
        """Return a meta-batch, with tasks of equal shape stacked, in the order in which shapes first occur."""
        by_shape: dict[tuple, list[DrawnTask]] = {}
        for task in map(self.draw, indices):
            by_shape.setdefault(task.shape, []).append(task)
        return [self.stack(tasks) for tasks in by_shape.values()]

    def task(self, index: int) -> Episode:
        """Return task ``index`` as an episode of one task, with images in uint8."""
        return self.stack([self.draw(index)])

    def stack(self, tasks: Sequence[DrawnTask]) -> Episode:
        """Return tasks with the same shape as one episode, with images in uint8."""
        support, support_ids, support_views = self._read([task.support for task in tasks])
        query, query_ids, query_views = self._read([task.query for task in tasks])
        return Episode(
            support=support,
            query=query,
            way=tasks[0].way,
            index=torch.tensor([task.index for task in tasks]),
            views=None if self.views is None else Views(self.views, support_views, query_views),
            source=tasks[0].source,
            ids=(support_ids, query_ids),
        )

    def _read(self, drawn: Sequence[DrawnRows]) -> tuple[Labelled, torch.Tensor, torch.Tensor]:
        """Read the support or query rows of several tasks: images and labels, image ids, and parameters of views."""
        rows, classes, labels, views = (np.stack(fields) for fields in zip(*drawn, strict=True))
        turns = self.split.turns[classes]
        return (
            Labelled(torch.from_numpy(self.split.gather(rows, turns)), torch.from_numpy(labels)),
            torch.from_numpy(self.split.ids(rows, turns)),
            torch.from_numpy(views),
        )

    def class_names(self, index: int) -> list[str]:
        """Return the names of the classes of task ``index``, by label."""
        _, classes, _, _ = self._draw_classes(index)
        return [self.split.names[c] for c in classes]

    def draw(self, index: int) -> DrawnTask:
        """Draw task ``index``."""
        rng, classes, query, shots = self._draw_classes(index)
        # Shuffle all images and draw all views, so that later draws do not depend on the shot.
        rows = [rng.permutation(self.split.rows[c]) for c in classes]
        views = [self._draw_views(rng, np.full(len(r), c)) for r, c in zip(rows, classes, strict=True)]

        def select(places: list[np.ndarray]) -> DrawnRows:
            def cut(by_class: list[np.ndarray]) -> np.ndarray:
                return np.concatenate([x[part] for x, part in zip(by_class, places, strict=True)])

            labels = np.repeat(np.arange(len(classes)), [len(part) for part in places])
            return DrawnRows(cut(rows), classes[labels], labels, cut(views))

        counts = self._count_queries(index, query, np.array([len(r) for r in rows]) - shots)
        # Queries beyond ``query`` come from the end, so that they do not depend on the shot, as long as the class has
        # enough images.
        queries = [np.arange(-max(0, count - query), min(count, query)) for count in counts]
        support = [np.arange(query, query + shot) for shot in shots]
        # A child stream, so that neither the shot nor views change the order of queries.
        stream = np.random.SeedSequence([self.spec.seed, STREAMS[self.spec.split], index], spawn_key=(1,))
        order = np.random.default_rng(stream)
        asked = select(queries).permuted(order)
        return DrawnTask(select(support).permuted(order), asked, len(classes), index)

    def _draw_classes(self, index: int) -> tuple[np.random.Generator, np.ndarray, int, np.ndarray]:
        """Return the generator of task ``index``, and its classes, number of queries and shots, drawn first."""
        rng = np.random.default_rng([self.spec.seed, STREAMS[self.spec.split], index])
        return rng, *(self._draw_natural_sizes if self.spec.natural else self._draw_sizes)(rng)

    def _count_queries(self, index: int, query: int, room: np.ndarray) -> np.ndarray:
        """Return the number of queries of each class of task ``index``.

        Args:
            index: index of the task.
            query: the mean number per class.
            room: the number of images of each class that are not in the support set.
        """
        if self.spec.balance == "balanced":
            return np.full(len(room), query)
        stream = np.random.SeedSequence([self.spec.seed, STREAMS[self.spec.split], index], spawn_key=(2,))
        proportions = np.random.default_rng(stream).dirichlet(np.full(len(room), self.spec.dirichlet))
        return apportion(proportions, len(room) * query, room)

    def _draw_views(self, rng: np.random.Generator, classes: np.ndarray) -> np.ndarray:
        """Draw the parameters ``(n, k)`` of the views of images of ``classes`` ``(n,)``."""
        return np.empty((len(classes), 0), np.float32) if self.views is None else self.views.draw(rng, classes)

    def _draw_sizes(self, rng: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray]:
        """Draw the classes of a task, and the number of queries and the shot of each class."""
        # Always draw both sizes, so that classes do not depend on whether way and shot are fixed.
        (way_low, way_high), (shot_low, shot_high) = self._bounds
        sizes = rng.random(2)
        way = way_low + int(sizes[0] * (way_high - way_low + 1))
        shot = shot_low + int(sizes[1] * (shot_high - shot_low + 1))
        classes = rng.permutation(len(self.split.rows))[:way]
        return classes, self.spec.query, np.full(way, shot)

    @cached_property
    def _bounds(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The smallest and largest way and shot."""
        return self.spec.bounds("way"), self.spec.bounds("shot")

    def _draw_natural_sizes(self, rng: np.random.Generator) -> tuple[np.ndarray, int, np.ndarray]:
        """Draw classes of one group, and sizes, as in Meta-Dataset (Triantafillou et al. 2020, section 3 and appendix).

        With ``n_c`` the number of images of class ``c``: ``q = min(query, floor(min n_c / 2))`` queries of each class;
        support size ``S = min(support, sum_c ceil(beta min(100, n_c - q)))`` with ``beta ~ U(0, 1]``; shots
        ``min(floor(R_c (S - way)) + 1, n_c - q)`` with ``R_c`` proportional to ``n_c exp(a_c)``,
        ``a_c ~ U[ln 1/2, ln 2)``.
        """
        low, high = self.spec.bounds("way")
        members = self._groups[rng.integers(len(self._groups))]
        way = rng.integers(low, min(high, len(members)) + 1)
        classes = rng.permutation(members)[:way]
        count = np.array([len(self.split.rows[c]) for c in classes])
        query = min(self.spec.query, count.min() // 2)
        room = count - query
        # floor(x u) + 1 with u in [0, 1) is ceil(x beta) with beta in (0, 1].
        support = min(self.spec.support, int((np.floor(rng.random() * np.minimum(100, room)) + 1).sum()))
        weight = count * np.exp(rng.uniform(np.log(0.5), np.log(2), way))
        return classes, query, np.minimum(np.floor(weight / weight.sum() * (support - way)).astype(int) + 1, room)

    @cached_property
    def _groups(self) -> list[np.ndarray]:
        """The classes of each group with enough classes for a task with natural shots."""
        return class_groups(self.split.groups, self.spec.bounds("way")[0])


def apportion(proportions: np.ndarray, total: int, room: np.ndarray) -> np.ndarray:
    """Return integers close to ``total * proportions`` whose sum is ``total``, by the method of largest remainders.

    None exceeds its ``room``: what does not fit is divided evenly among the others.

    >>> share = np.array([0.52, 0.29, 0.19])
    >>> apportion(share, 10, np.array([9, 9, 9])).tolist(), apportion(share, 10, np.array([3, 9, 9])).tolist()
    ([5, 3, 2], [3, 4, 3])
    """
    counts = np.zeros(len(room), int)
    for _ in range(total):
        counts[np.where(counts < room, total * proportions - counts, -np.inf).argmax()] += 1
    return counts


class MixtureSampler(Sampler):
    """Draw tasks from several datasets, each task from one of them.

    Training draws the dataset of a task uniformly. Evaluation cycles through the datasets, so that each dataset is
    evaluated on the same tasks as without the others.

    Args:
        samplers: the sampler of each dataset.
        spec: the shape, number and seed of the tasks.
    """

    def __init__(self, samplers: Sequence[Sampler], spec: TaskSpec):
        self.samplers, self.spec = list(samplers), spec

    def class_names(self, index: int) -> list[str]:
        """Return the names of the classes of task ``index``, by label."""
        number, own = self._place(index)
        return self.samplers[number].class_names(own)

    def draw(self, index: int) -> DrawnTask:
        """Draw task ``index``."""
        number, own = self._place(index)
        return self.samplers[number].draw(own)._replace(index=index, source=number)

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of the dataset of task ``index``, and the index of the task in it."""
        own, number = divmod(index, len(self.samplers))
        if self.spec.split == "train":
            # A child stream, distinct from the streams of tasks.
            stream = np.random.SeedSequence([self.spec.seed, STREAMS["train"], index], spawn_key=(0,))
            own, number = index, int(np.random.default_rng(stream).integers(len(self.samplers)))
        return number, own

    def stack(self, tasks: Sequence[DrawnTask]) -> Episode:
        """Return tasks with the same shape, and hence from the same dataset, as one episode."""
        return self.samplers[tasks[0].source].stack(tasks)
