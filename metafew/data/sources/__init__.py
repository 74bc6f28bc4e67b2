"""Sources of images: what a dataset must offer, and the class splits that ship with the package."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class Category(NamedTuple):
    """One class of a split.

    Attributes:
        name: What the class is called in tables.
        keys: The keys of its images, as `Source.read` takes them.
        turns: Counter-clockwise quarter turns (as `numpy.rot90`) that make the class's images from the stored ones:
            the rotated classes of Vinyals et al. (2016) share their keys and differ in this count.
    """

    name: str
    keys: tuple[str, ...]
    turns: int = 0


class Source(Protocol):
    """A dataset: classes in three splits, and a way to read their images.

    Attributes:
        name: The word that selects the dataset.
        channels: 1 or 3.
        image_size: Height and width of the images it reads, in pixels.
        jitter: The random distortion that belongs to the data, or None.
    """

    name: str
    channels: int
    image_size: int
    jitter: Any | None

    def splits(self) -> dict[str, list[Category]]:
        """The classes of 'train', 'val' and 'test', in a fixed order; reads no image."""

    def fingerprint(self) -> str:
        """A checksum of every file and setting that shapes the stored images or the classes."""

    def read(self, keys: Sequence[str]) -> Iterator[np.ndarray]:
        """The images of `keys`, in their order: uint8 of shape (channels, image_size, image_size).

        Drawings have ink 255 on ground 0.
        """


def shipped_split(name: str) -> dict:
    """The content of `splits/<name>.json`, the class split that ships with the package."""
    return json.loads((Path(__file__).parent / "splits" / f"{name}.json").read_text(encoding="utf-8"))
