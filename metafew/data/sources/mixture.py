"""mixture: several datasets, each task from one of them, as in Meta-Dataset (Triantafillou et al. 2020)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metafew.data.sources import Category, Source
from metafew.errors import UsageError


class Mixture(Source):
    """Datasets whose tasks are mixed. Each keeps its store, its splits and the distortion that belongs to its data.

    Args:
        find: `find(item, image_size)` makes the dataset that an item of the lists below stands for.
        sources: The datasets of training, validation and testing.
        test_sources: Datasets that only testing draws from; their images are brought to the channels of training.
        image_size: Height and width of all images, in pixels.
        channels: 1 or 3; None for as many as the datasets of training have at most.

    Raises:
        UsageError: A list is empty, two datasets have one name, or a setting is not as said here.
    """

    name = "mixture"

    def __init__(
        self,
        find: Callable[[str | Mapping[str, Any], int], Source],
        sources: Sequence[str | Mapping[str, Any]],
        test_sources: Sequence[str | Mapping[str, Any]],
        image_size: int,
        channels: int | None,
    ):
        if not isinstance(image_size, int) or image_size < 2:
            raise UsageError(f"dataset.image_size is a number of pixels, not {image_size}: type dataset.image_size=28")
        if channels not in (None, 1, 3):
            raise UsageError(f"dataset.channels is 1, 3 or null, not {channels}: type dataset.channels=null")
        sources, test_sources = ([part] if isinstance(part, str) else part or [] for part in (sources, test_sources))
        if not sources:
            raise UsageError("dataset=mixture wants one dataset or more: type dataset.sources=[glyphs,omniglot]")
        self.image_size = image_size
        self.sources, self.held_out = ([find(item, image_size) for item in part] for part in (sources, test_sources))
        labels = [source.title for source in (*self.sources, *self.held_out)]
        for label in labels:
            if labels.count(label) > 1:
                raise UsageError(
                    f"the datasets of a mixture are told apart by name, and {labels.count(label)} are called {label}: "
                    f"type {{dataset:WORD,name:OTHER}} for one of them"
                )
            if not re.fullmatch(r"(?!shot\d|step\d|best_step)\w[\w.-]*", label):
                raise UsageError(
                    f"the name of a dataset of a mixture is a word, other than shot1 or step1, and {label!r} is none: "
                    "type {dataset:WORD,name:OTHER} for it"
                )
        self.channels = channels or max(source.channels for source in self.sources)

    def components(self, split: str) -> list[Source]:
        """Return the datasets that the tasks of a split come from, those held out of training last."""
        return self.sources + self.held_out if split == "test" else self.sources

    def splits(self) -> dict[str, list[Category]]:
        """Raise: classes are the components' own, and no objective trains on those of several datasets at once."""
        raise UsageError(
            "objective=classical wants the classes of one dataset, and dataset=mixture has several: "
            "type objective=episodic, or train with dataset=NAME and take its backbone by backbone.weights=CKPT"
        )
