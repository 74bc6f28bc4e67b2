"""The base class of datasets, and the class splits shipped with the package."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metafew.data.formats.conversion import Conversion

SPLITS = ("train", "val", "test")
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as in Pillow."""


class Category(NamedTuple):
    """One class of a split.

    Attributes:
        name: the name of the class in tables.
        keys: the keys of its images, for :meth:`Source.read`.
        turns: counter-clockwise quarter turns (as in ``numpy.rot90``) to apply to its stored images. The rotated
            classes of Vinyals et al. (2016) share their keys and differ in this number.
        group: the group of the class, such as its alphabet; ``""`` if there are no groups.
    """

    name: str
    keys: tuple[Hashable, ...]
    turns: int = 0
    group: str = ""


class Source:
    """A dataset: classes in three splits, and how to read their images.

    A new dataset implements :meth:`splits`, :meth:`fingerprint` and :meth:`read`, and sets ``name``, ``channels`` and
    ``image_size``. Its images are read once, when the store is built.
    """

    name: str
    """The name on the command line: ``dataset=NAME``."""
    label: str | None = None
    """The name in a mixture, which may contain several datasets with the same :attr:`name`; None for :attr:`name`."""
    channels: int
    """Number of channels of the images, 1 or 3; or the length of feature vectors."""
    image_size: int
    """Height and width of the images, in pixels."""
    dtype: type = np.uint8
    """Data type of the stored values."""
    jitter: Any | None = None
    """A random view that is part of the dataset (see :mod:`metafew.data.augment`), or None."""
    conversion: Conversion | None = None
    """The conversion of image files to stored images; None if the dataset has no image files."""
    drawings: bool = False
    """Whether all images are drawings, in bright ink on a dark background."""
    own_images: bool = False
    """Whether the images are the user's own, so that the user can choose their conversion."""
    duplicates: str | None = None
    """How to treat copies of an image: ``warn``, ``error`` or ``drop``; None, for published datasets, ignores them."""
    published_images: int | None = None
    """Number of images of a published dataset, or None."""
    evaluation_options: tuple[str, ...] = ()
    """Options that only affect evaluation: a run can be resumed if only these differ."""

    drawn: bool = False
    """Whether :meth:`splits` divided the classes at random by the option ``fractions``; set by the first call."""

    @property
    def title(self) -> str:
        """The name in error messages and checkpoints."""
        return self.label or self.name

    @property
    def display_name(self) -> str:
        """The name in results: for the user's own data, that of the folder or file."""
        return self.title

    def splits(self) -> dict[str, list[Category]]:
        """Return the classes of ``train``, ``val`` and ``test``, in a fixed order, without reading images.

        Raises:
            UsageError: if files are missing or damaged.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return a checksum of all files and settings that determine the classes or the stored images.

        It decides whether images are read again. Stored data are identified by their content.
        """
        raise NotImplementedError

    def read(self, keys: Sequence[Any]) -> Iterator[np.ndarray]:
        """Read the images of ``keys``, in order: ``(channels, image_size, image_size)`` of type :attr:`dtype`.

        Drawings have ink 255 on a background of 0.
        """
        raise NotImplementedError

    @property
    def seen(self) -> Mapping[str, Any]:
        """Properties of the images read so far, as plain values: counts and ranges."""
        return self.conversion.seen if self.conversion else {}

    @property
    def ignored(self) -> Mapping[str, int]:
        """Numbers of files, folders, arrays and rows that are not read, by reason and place."""
        return {}

    def describe(self, key: Any) -> str:
        """Return the name of an image for messages, such as its path."""
        return str(key)

    def components(self, split: str) -> list[Source]:
        """Return the datasets from which tasks of ``split`` are drawn, each task from one of them.

        A mixture returns several. ``Episode.source`` is an index into this list.
        """
        return [self]

    def all_components(self) -> list[Source]:
        """Return the components of all splits, each once."""
        return list(dict.fromkeys(source for split in SPLITS for source in self.components(split)))


def shipped_split(name: str) -> dict:
    """Return the class split that ships with the package as ``splits/<name>.json``."""
    return json.loads((Path(__file__).parent / "splits" / f"{name}.json").read_text(encoding="utf-8"))
