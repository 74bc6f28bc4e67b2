"""What datasets of image files share: classes out of collections, dealt to splits, brought to one size."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from operator import itemgetter

import numpy as np

from metafew.data.formats import Collection, stamp
from metafew.data.formats.images import FITS, to_pixels
from metafew.data.sources import Category, Source
from metafew.errors import UsageError

VERSION = 1  # of the conversion


class Collected(Source):
    """A dataset whose images lie in collections. A subclass finds them, with the classes of each split: `find`.

    Args:
        channels: 1 or 3; images are converted.
        image_size: Height and width of the stored images, in pixels.
        fit: How an image becomes a square: 'crop' takes the middle, 'stretch' takes all of it.

    Raises:
        UsageError: A setting is none of these.
    """

    def __init__(self, channels: int, image_size: int, fit: str):
        if channels not in (1, 3):
            raise UsageError(f"dataset.channels is 1 or 3, not {channels}: type dataset.channels=3")
        if not isinstance(image_size, int) or image_size < 1:
            raise UsageError(f"dataset.image_size is a number of pixels, not {image_size}: type dataset.image_size=84")
        if fit not in FITS:
            raise UsageError(f"dataset.fit is {' or '.join(FITS)}, not {fit}: type dataset.fit={FITS[0]}")
        self.channels, self.image_size, self.fit = channels, image_size, fit

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return collections, and the names of the classes of 'train', 'val' and 'test'.

        A class that several collections hold has the images of all of them.

        Raises:
            UsageError: Files are missing, or are not what they should be.
        """
        raise NotImplementedError

    def group(self, name: str) -> str:
        """Return what the class of this name is a part of."""
        return ""

    def splits(self) -> dict[str, list[Category]]:
        """Return the classes of 'train', 'val' and 'test'; keys are the number of a collection and a key of its own.

        Raises:
            UsageError: A class of a split has no images.
        """
        return self._found[1]

    def fingerprint(self) -> str:
        """Return a checksum of names, sizes and times of change of the files, of the splits and of the settings."""
        collections, splits = self._found
        settings = (VERSION, self.channels, self.image_size, self.fit)
        digest = sha256(repr((self.name, settings, splits)).encode())
        for collection in collections:
            digest.update(stamp(collection.files).encode())
        return digest.hexdigest()

    def read(self, keys: Sequence[Hashable]) -> Iterator[np.ndarray]:
        """Read images one by one: uint8 of shape (channels, image_size, image_size)."""
        for number, group in groupby(keys, itemgetter(0)):
            for image in self._found[0][number].open([key for _, key in group]):
                yield to_pixels(image, self.channels, self.image_size, self.fit)

    @cached_property
    def _found(self) -> tuple[list[Collection], dict[str, list[Category]]]:
        """The collections, and the classes of each split."""
        collections, parts = self.find()
        images: dict[str, list[Hashable]] = {}
        for number, collection in enumerate(collections):
            for name, keys in collection.classes.items():
                images.setdefault(name, []).extend((number, key) for key in keys)
        missing = [(split, name) for split, names in parts.items() for name in names if not images.get(name)]
        if missing:
            split, name = missing[0]
            raise UsageError(
                f"dataset={self.name} wants images of class '{name}' in its {split} split, and the files hold none "
                f"({len(missing)} classes are missing; the files have {len(images)}, such as "
                f"'{next(iter(images), '')}'): complete the files, correct the splits, or type dataset.root=DIR of "
                "another copy"
            )
        return collections, {
            split: [Category(name, tuple(images[name]), group=self.group(name)) for name in names]
            for split, names in parts.items()
        }
