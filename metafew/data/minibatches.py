"""Minibatches of classical training, divided into chunks. Chunk ``i`` is a pure function of (seed, split, i)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metafew.config.option_values import check_integer
from metafew.data.augment import Chain
from metafew.data.sampler import STREAMS, DrawnRows, DrawnTask, Sampler
from metafew.data.sources import Category
from metafew.data.store import Split
from metafew.data.task_spec import Shortage, counted
from metafew.errors import UsageError


@dataclass(frozen=True)
class Minibatches:
    """The size, number and seed of the minibatches of a split.

    Attributes:
        split: ``train``.
        size: number of images per minibatch, over all processes.
        tasks: number of equal chunks per minibatch; norms treat each chunk as one task.
        total: total number of chunks.
        seed: seed of the sequence of chunks.
        pairs: whether a chunk consists of pairs of classes with two images each, as required by regularizers on
            features.
    """

    split: str
    size: int
    tasks: int
    total: int
    seed: int
    pairs: bool

    def __post_init__(self):
        for word, value, least in (("batch_size", self.size, 2), ("tasks", self.tasks, 1), ("total", self.total, 1)):
            check_integer(f"{self.split}.{word}", value, least)
        unit, what = (4, "pairs of classes with two images each") if self.pairs else (1, "images")
        if self.size % (unit * self.tasks):
            raise UsageError(
                f"expected {self.split}.batch_size to be a multiple of {unit * self.tasks}, as it is cut into "
                f"{self.split}.tasks={self.tasks} equal chunks of {what}, got {self.size}: "
                f"type {self.split}.batch_size={-(-self.size // (unit * self.tasks)) * unit * self.tasks}"
            )

    @property
    def chunk(self) -> int:
        """The number of images per chunk."""
        return self.size // self.tasks

    @property
    def contexts(self) -> tuple[int, int]:
        """The smallest and largest number of context rows per task, which are all rows of a chunk."""
        return self.chunk, self.chunk

    def shortages(self, categories: Sequence[Category], dataset: str) -> list[Shortage]:
        """Return the shortages of ``categories`` for minibatches of this specification; an empty list if none."""
        where = f"the {self.split} split of dataset={dataset}"
        if len(categories) < 2:
            return [Shortage(f"training needs two classes or more, but {where} has {counted(categories)}")]
        needed, count = self.chunk // 2, len(categories)
        smallest = min(categories, key=lambda category: len(category.keys))
        if self.pairs and len(smallest.keys) < 2:
            problem = f"pairs need two images of each class, but class '{smallest.name}' in {where} has one"
            return [Shortage(problem, {"regularizer": "none"})]
        if self.pairs and needed > count:
            problem = (
                f"{self.split}.batch_size={self.size} in {self.split}.tasks={self.tasks} chunks of pairs needs "
                f"{needed} classes in each, but {where} has {count}"
            )
            return [Shortage(problem, {f"{self.split}.batch_size": count // 2 * 4 * self.tasks})]
        return []


class MinibatchSampler(Sampler):
    """Draw chunks: tasks with all classes of the split, whose rows are all support.

    Without pairs, chunks are consecutive parts of an endless sequence of epochs, each a permutation of all images of
    the split; an epoch may end within a chunk. With pairs, each chunk independently draws distinct classes and two
    images of each, without epochs.

    Args:
        split: the images.
        spec: the specification of the minibatches.
        views: random views of the images, or None.
    """

    spec: Minibatches  # type: ignore[assignment]  # chunks have other options than tasks

    def __init__(self, split: Split, spec: Minibatches, views: Chain | None):
        super().__init__(split, spec, views)  # type: ignore[arg-type]  # see above
        # Rotated classes share images, so an image of an epoch is identified by a row and a class.
        self.rows = np.concatenate(split.rows)
        self.classes = np.repeat(np.arange(len(split.rows)), [len(rows) for rows in split.rows])
        self._latest = (-1, np.empty(0, int))

    def __reduce__(self) -> tuple:
        return MinibatchSampler, (self.split, self.spec, self.views)  # without arrays as long as the split

    def draw(self, index: int) -> DrawnTask:
        """Draw chunk ``index``.

        With pairs, the features ``(1, n, d)`` of its episode, viewed as ``(1, n / 4, 2, 2, d)``, have the dimensions
        (task, pair, class, image).
        """
        rng = np.random.default_rng([self.spec.seed, STREAMS[self.spec.split], index])
        rows, classes = self._draw_pairs(rng) if self.spec.pairs else self._consecutive(index * self.spec.chunk)
        support = DrawnRows(rows, classes, classes, self._draw_views(rng, classes))
        query = DrawnRows(*(field[:0] for field in support))
        return DrawnTask(support, query, len(self.split.rows), index)

    def _draw_pairs(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of two images from each of ``chunk / 2`` distinct classes, and their classes."""
        classes = rng.permutation(len(self.split.rows))[: self.spec.chunk // 2]
        rows = [rng.choice(self.split.rows[c], 2, replace=False) for c in classes]
        return np.concatenate(rows), np.repeat(classes, 2)

    def _consecutive(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows and classes of ``chunk`` images in the sequence of epochs, starting at number ``start``."""
        stop, size = start + self.spec.chunk, len(self.rows)
        epochs = range(start // size, -(-stop // size))
        order = np.concatenate([self._epoch(e)[max(start - e * size, 0) : stop - e * size] for e in epochs])
        return self.rows[order], self.classes[order]

    def _epoch(self, number: int) -> np.ndarray:
        """Return the order of all images in an epoch. The latest is cached, as chunks are mostly requested in order."""
        if self._latest[0] != number:
            # A child stream, distinct from the streams of chunks.
            stream = np.random.SeedSequence([self.spec.seed, STREAMS[self.spec.split]], spawn_key=(number,))
            self._latest = number, np.random.default_rng(stream).permutation(len(self.rows))
        return self._latest[1]
