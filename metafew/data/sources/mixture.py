"""mixture: several datasets, each task from one of them, as in Meta-Dataset (Triantafillou et al. 2020)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metafew.config.option_values import check_choice, check_integer
from metafew.data.sources.source import Category, Source
from metafew.errors import UsageError


class Mixture(Source):
    """Several datasets, each with its own store, splits and jitter.

    Args:
        find: ``find(item, image_size)`` returns the dataset described by an item of the lists below.
        sources: the datasets for training, validation and testing.
        test_sources: datasets for testing only; their images are converted to the channels of training.
        image_size: height and width of all images, in pixels.
        channels: 1 or 3; None for the largest number among the training datasets.

    Raises:
        UsageError: if there is no dataset, two datasets have the same name, or an option has an invalid value.
    """

    name = "mixture"
    evaluation_options = ("test_sources",)

    def __init__(
        self,
        find: Callable[[str | Mapping[str, Any], int], Source],
        sources: Sequence[str | Mapping[str, Any]],
        test_sources: Sequence[str | Mapping[str, Any]],
        image_size: int,
        channels: int | None,
    ):
        check_integer("dataset.image_size", image_size, 2, 28)
        check_choice("dataset.channels", channels, (None, 1, 3))
        sources, test_sources = (
            [items] if isinstance(items, str) else items or [] for items in (sources, test_sources)
        )
        if not sources:
            raise UsageError(
                "expected at least one dataset in dataset.sources, got none: type dataset.sources=[glyphs,omniglot]"
            )
        self.image_size = image_size
        self.sources, self.test_sources = (
            [find(item, image_size) for item in items] for items in (sources, test_sources)
        )
        titles = [source.title for source in (*self.sources, *self.test_sources)]
        for title in titles:
            if titles.count(title) > 1:
                raise UsageError(
                    f"expected the datasets of a mixture to have different names, but {titles.count(title)} are called "
                    f"{title}: type {{dataset:WORD,name:OTHER}} for one of them"
                )
            if not re.fullmatch(r"(?!shot\d|step\d|best_step)\w[\w.-]*", title):
                raise UsageError(
                    "expected the name of a dataset of a mixture to be a word, other than shot1 or step1, got "
                    f"{title!r}: type {{dataset:WORD,name:OTHER}} for it"
                )
        self.channels = channels or max(source.channels for source in self.sources)

    def components(self, split: str) -> list[Source]:
        """Return the datasets of the tasks of ``split``; those for testing only are last."""
        return self.sources + self.test_sources if split == "test" else self.sources

    def splits(self) -> dict[str, list[Category]]:
        """Raise UsageError: ``objective=classical``, which needs the classes, trains on one dataset."""
        raise UsageError(
            "expected the classes of one dataset for objective=classical, but dataset=mixture has several datasets: "
            "type objective=episodic, or train with dataset=NAME and load its backbone by backbone.weights=CKPT"
        )
