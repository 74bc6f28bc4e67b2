"""Sources of images: what a dataset must offer, and the class splits that ship with the package."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "val", "test")
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as Pillow's."""


class Category(NamedTuple):
    """One class of a split.

    Attributes:
        name: What the class is called in tables.
        keys: The keys of its images, as `Source.read` takes them.
        turns: Counter-clockwise quarter turns (as `numpy.rot90`) that make the class's images from the stored ones:
            the rotated classes of Vinyals et al. (2016) share their keys and differ in this count.
        group: What the class is a part of, such as its alphabet; '' where classes stand side by side.
    """

    name: str
    keys: tuple[Hashable, ...]
    turns: int = 0
    group: str = ""


class Source:
    """A dataset: classes in three splits, and a way to read their images.

    Attributes:
        name: The word that selects the dataset.
        label: What tables call it in a mixture, where it may be one of several of the same word.
        channels: 1 or 3.
        image_size: Height and width of the images it reads, in pixels.
        dtype: The numbers that it stores: uint8 for images.
        jitter: The random distortion that belongs to the data, or None.
    """

    name: str
    label: str | None = None
    channels: int
    image_size: int
    dtype: type = np.uint8
    jitter: Any | None = None

    def splits(self) -> dict[str, list[Category]]:
        """Return the classes of 'train', 'val' and 'test', in a fixed order; reads no image."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return a checksum of every file and setting that shapes the stored images or the classes."""
        raise NotImplementedError

    def read(self, keys: Sequence[Hashable]) -> Iterator[np.ndarray]:
        """Read the images of `keys`, in their order: uint8 of shape (channels, image_size, image_size).

        Drawings have ink 255 on ground 0.
        """
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What tables and messages call it."""
        return self.label or self.name

    def components(self, split: str) -> list[Source]:
        """Return the datasets that the tasks of a split come from, each task from one of them."""
        return [self]

    def everything(self) -> list[Source]:
        """Return the datasets that the tasks of any split come from, each once."""
        return list(dict.fromkeys(source for split in SPLITS for source in self.components(split)))


def shipped_split(name: str) -> dict:
    """The content of `splits/<name>.json`, the class split that ships with the package."""
    return json.loads((Path(__file__).parent / "splits" / f"{name}.json").read_text(encoding="utf-8"))
