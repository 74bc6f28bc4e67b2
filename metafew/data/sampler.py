"""Tasks. Task ``i`` of a split is a pure function of (seed, split, i)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from metafew.data.augment import Chain
from metafew.data.sources import Category
from metafew.data.store import Split
from metafew.episode import Episode, Labelled, Views
from metafew.errors import UsageError

STREAMS = {"train": 0, "val": 1, "test": 2}
NATURAL = "natural"
"""The shot of Meta-Dataset's tasks, drawn for each class by the number of its images."""


@dataclass(frozen=True)
class Plan:
    """What the tasks of a split look like.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        way: classes of a task: a number, or ``"a..b"`` for one drawn uniformly for each task.
        shot: support images of each class, likewise; or ``"natural"`` for Meta-Dataset's tasks, whose way is at most
            the number of classes there are and whose shots differ from class to class.
        query: query images of each class; with natural shots at most so many.
        tasks: tasks in one meta-batch, over all processes.
        total: number of tasks in all.
        seed: the seed of the stream of tasks.
        support: most support images of a task with natural shots.
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
        for word in ("query", "tasks", "total", "support"):
            value, least = getattr(self, word), 0 if (self.split, word) == ("train", "query") else 1
            least = self.bounds("way")[1] if word == "support" and self.natural else least
            if not isinstance(value, int) or value < least:
                raise UsageError(
                    f"{self.split}.{word} is a whole number of at least {least}, not {value}: "
                    f"type {self.split}.{word}={max(1, least)}"
                )

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
                f"{self.split}.{word} is a whole number of at least {least}, or a range such as "
                f"{least}..{least + 8}{', or natural' * (word == 'shot')}, not {value}: "
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

    def check(self, categories: Sequence[Category], dataset: str) -> None:
        """Raise a sentence when some task of this plan cannot be drawn from ``categories``."""
        where = f"the {self.split} split of dataset={dataset}"
        if not categories:
            raise UsageError(f"{where} has no classes: add some, or choose stages that do not need it")
        smallest = min(categories, key=lambda category: len(category.keys))
        count, (low, way) = len(smallest.keys), self.bounds("way")
        if self.natural:
            if not groups([category.group for category in categories], low):
                raise UsageError(
                    f"{self.split}.way={self.way} needs {low} classes of one group, and {where} has no such group "
                    f"among its {len(categories)} classes: type {self.split}.way=2..{way}"
                )
            if count < 2:
                raise UsageError(
                    f"{self.split}.shot=natural needs two images of each class, and class '{smallest.name}' in {where} "
                    f"has {count}: add images to it, or take it out"
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
            advice = f"type {self.split}.{smaller} or less" if count > 1 else "add images to it, or take it out"
            raise UsageError(
                f"{self.split}.shot={self.shot} and {self.split}.query={self.query} need {shot + self.query} images "
                f"of each class, but class '{smallest.name}' in {where} has {count}: {advice}"
            )


class Sampler:
    """Draws the tasks of a plan.

    A task draws its classes, then for each class its queries, then its support, so that queries do not depend on the
    shot and an ``n``-shot support is part of the ``n+1``-shot one.

    Args:
        split: the images.
        plan: what tasks look like.
        views: random views of the images, or None.
    """

    def __init__(self, split: Split, plan: Plan, views: Chain | None):
        self.split, self.plan, self.views = split, plan, views

    def task(self, index: int) -> Episode:
        """Return task ``index`` as an episode of one task, images in uint8."""
        rng = np.random.default_rng([self.plan.seed, STREAMS[self.plan.split], index])
        classes, query, shots = (self._natural if self.plan.natural else self._sizes)(rng)
        # All images are shuffled and all views drawn, as what follows in the stream must not depend on the shot.
        rows = [rng.permutation(self.split.rows[c]) for c in classes]
        drawn = self.views and [self.views.draw(rng, np.full(len(r), c)) for r, c in zip(rows, classes, strict=True)]
        asked, given = [slice(0, query)] * len(classes), [slice(query, query + shot) for shot in shots]

        def images(parts: list[slice]) -> tuple[Labelled, torch.Tensor]:
            sizes = [part.stop - part.start for part in parts]
            labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(sizes))
            chosen = np.concatenate([r[part] for r, part in zip(rows, parts, strict=True)])
            of = np.repeat(classes, sizes)
            ids = torch.from_numpy(self.split.ids(chosen, self.split.turns[of]))
            return self._gather(chosen, of, labels), ids.unsqueeze(0)

        def parameters(parts: list[slice]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([d[p] for d, p in zip(drawn, parts, strict=True)])).unsqueeze(0)

        (support, support_ids), (query, query_ids) = images(given), images(asked)
        return Episode(
            support=support,
            query=query,
            way=len(classes),
            index=torch.tensor([index]),
            views=Views(self.views, parameters(given), parameters(asked)) if drawn else None,
            ids=(support_ids, query_ids),
        )

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

    def _gather(self, rows: np.ndarray, classes: np.ndarray, labels: torch.Tensor) -> Labelled:
        """Return the images ``rows`` of ``classes``, one class a row, as one task with these labels."""
        images = self.split.gather(rows, self.split.turns[classes])
        return Labelled(torch.from_numpy(images).unsqueeze(0), labels.unsqueeze(0))

    def batch(self, indices: Iterable[int]) -> list[Episode]:
        """Return a meta-batch: tasks of equal shape stacked, in the order in which shapes first occur."""
        same: dict[tuple, list[Episode]] = {}
        for episode in map(self.task, indices):
            shape = episode.way, episode.support.labels.shape, episode.query.labels.shape, episode.source
            same.setdefault(shape, []).append(episode)
        return [_stack(episodes) for episodes in same.values()]


class Mixed(Sampler):
    """Draws tasks from several datasets, each task from one of them.

    Training draws the dataset, with equal chances. Evaluation takes one after the other, so that each is measured on
    the tasks that it has alone, whatever else is in the mixture.

    Args:
        samplers: one a dataset.
        plan: what tasks look like.
    """

    def __init__(self, samplers: Sequence[Sampler], plan: Plan):
        self.samplers, self.plan = list(samplers), plan

    def task(self, index: int) -> Episode:
        """Return task ``index`` as an episode of one task, images in uint8."""
        count, stream = len(self.samplers), [self.plan.seed, STREAMS[self.plan.split], index]
        if self.plan.split == "train":
            # A child stream: no task's own stream equals it.
            number = int(np.random.default_rng(np.random.SeedSequence(stream, spawn_key=(0,))).integers(count))
            task = self.samplers[number].task(index)
        else:
            number = index % count
            task = self.samplers[number].task(index // count)
        return task._replace(index=torch.tensor([index]), source=number)


def groups(names: Sequence[str], way: int) -> list[np.ndarray]:
    """Return the numbers of the classes of each group of at least ``way`` classes.

    >>> groups(["Greek", "Latin", "Greek", "Latin", "Runes"], 2)
    [array([0, 2]), array([1, 3])]
    """
    found: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        found.setdefault(name, []).append(number)
    return [np.array(members) for members in found.values() if len(members) >= way]


def _stack(episodes: list[Episode]) -> Episode:
    """Join episodes of equal shape along their tasks."""

    def join(parts: Sequence[tuple | None]) -> tuple | None:
        """Join tuples of tensors; what is no tensor is the same in all of them."""
        if parts[0] is None:
            return None
        joined = [torch.cat(part) if torch.is_tensor(part[0]) else part[0] for part in zip(*parts, strict=True)]
        return parts[0]._make(joined) if hasattr(parts[0], "_make") else tuple(joined)

    return Episode(
        *(join(parts) for parts in zip(*((e.support, e.query) for e in episodes), strict=True)),
        way=episodes[0].way,
        index=torch.cat([e.index for e in episodes]),
        views=join([e.views for e in episodes]),
        source=episodes[0].source,
        ids=join([e.ids for e in episodes]),
    )
