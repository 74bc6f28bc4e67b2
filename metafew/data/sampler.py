"""Tasks. Task ``i`` of a split is a pure function of (seed, split, i)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metafew.data.augment import Affine
from metafew.data.sources import Category
from metafew.data.store import Split
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError

STREAMS = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Plan:
    """What the tasks of a split look like.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        way: classes of a task: a number, or ``"a..b"`` for one drawn uniformly for each task.
        shot: support images of each class, likewise.
        query: query images of each class.
        tasks: tasks in one meta-batch, over all processes.
        total: number of tasks in all.
        seed: the seed of the stream of tasks.
    """

    split: str
    way: int | str
    shot: int | str
    query: int
    tasks: int
    total: int
    seed: int

    def __post_init__(self):
        for word in ("way", "shot"):
            self.bounds(word)
        for word in ("query", "tasks", "total"):
            value, least = getattr(self, word), 0 if (self.split, word) == ("train", "query") else 1
            if not isinstance(value, int) or value < least:
                raise UsageError(
                    f"{self.split}.{word} is a whole number of at least {least}, not {value}: "
                    f"type {self.split}.{word}=1"
                )

    def bounds(self, word: str) -> tuple[int, int]:
        """Return the smallest and largest value of ``way`` or ``shot``."""
        value, least = getattr(self, word), 2 if word == "way" else 1
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", str(value))
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not least <= low <= high:
            raise UsageError(
                f"{self.split}.{word} is a whole number of at least {least}, or a range such as "
                f"{least}..{least + 8}, not {value}: type {self.split}.{word}={least + 3}"
            )
        return low, high

    @property
    def contexts(self) -> tuple[int, int]:
        """The smallest and largest number of support images of a task."""
        (way, ways), (shot, shots) = self.bounds("way"), self.bounds("shot")
        return way * shot, ways * shots

    def check(self, categories: Sequence[Category], dataset: str) -> None:
        """Raise a sentence when the largest task of this plan cannot be drawn from ``categories``."""
        (_, way), (_, shot) = self.bounds("way"), self.bounds("shot")
        if way > len(categories):
            raise UsageError(
                f"{self.split}.way={self.way} needs {way} classes, but the {self.split} split of dataset={dataset} "
                f"has {len(categories)}: type {self.split}.way={len(categories)} or less"
            )
        smallest = min(categories, key=lambda category: len(category.keys))
        count = len(smallest.keys)
        if shot + self.query > count:
            room = count - shot
            advice = f"{self.split}.query={room} or less" if room > 0 else f"{self.split}.shot={count - 1} or less"
            raise UsageError(
                f"{self.split}.shot={self.shot} and {self.split}.query={self.query} need {shot + self.query} images "
                f"of each class, but class '{smallest.name}' in the {self.split} split of dataset={dataset} has "
                f"{count}: type {advice}"
            )


class Sampler:
    """Draws the tasks of a plan.

    A task draws its classes, then for each class its queries, then its support, so that queries do not depend on the
    shot and an ``n``-shot support is part of the ``n+1``-shot one.

    Args:
        split: the images.
        plan: what tasks look like.
        jitter: random views that belong to the data, or None.
    """

    def __init__(self, split: Split, plan: Plan, jitter: Affine | None):
        self.split, self.plan, self.jitter = split, plan, jitter

    def task(self, index: int) -> Episode:
        """Return task ``index`` as an episode of one task, images in uint8."""
        plan = self.plan
        rng = np.random.default_rng([plan.seed, STREAMS[plan.split], index])
        # Both sizes are always drawn, so that a fixed shot meets the same classes as a drawn one.
        (way_low, way_high), (shot_low, shot_high) = plan.bounds("way"), plan.bounds("shot")
        sizes = rng.random(2)
        way = way_low + int(sizes[0] * (way_high - way_low + 1))
        shot = shot_low + int(sizes[1] * (shot_high - shot_low + 1))
        classes = rng.permutation(len(self.split.rows))[:way]
        query, support = slice(0, plan.query), slice(plan.query, plan.query + shot)
        rows = [rng.permutation(self.split.rows[c]) for c in classes]
        maps = self.jitter and [self.jitter.draw(rng, len(r)) for r in rows]

        def pick(part: slice, size: int) -> Labelled:
            labels = torch.arange(way).repeat_interleave(size)
            return self._gather(np.concatenate([r[part] for r in rows]), np.repeat(classes, size), labels)

        def views(part: slice) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([m[part] for m in maps])).unsqueeze(0)

        return Episode(
            support=pick(support, shot),
            query=pick(query, plan.query),
            way=way,
            index=torch.tensor([index]),
            views=(views(support), views(query)) if maps else None,
        )

    def _gather(self, rows: np.ndarray, classes: np.ndarray, labels: torch.Tensor) -> Labelled:
        """Return the images ``rows`` of ``classes``, one class a row, as one task with these labels."""
        images = self.split.gather(rows, self.split.turns[classes])
        return Labelled(torch.from_numpy(images).unsqueeze(0), labels.unsqueeze(0))

    def batch(self, indices: Iterable[int]) -> list[Episode]:
        """Return a meta-batch: tasks of equal shape stacked, in the order in which shapes first occur."""
        groups: dict[tuple, list[Episode]] = {}
        for episode in map(self.task, indices):
            groups.setdefault((episode.way, episode.support.labels.shape), []).append(episode)
        return [_stack(episodes) for episodes in groups.values()]


def _stack(episodes: list[Episode]) -> Episode:
    """Join episodes of equal shape along their tasks."""

    def join(parts: Sequence) -> Labelled:
        return Labelled(*map(torch.cat, zip(*parts, strict=True)))

    supports, queries, ways, indices, views = zip(*episodes, strict=True)
    joined = None if views[0] is None else tuple(map(torch.cat, zip(*views, strict=True)))
    return Episode(join(supports), join(queries), ways[0], torch.cat(indices), joined)
