"""The base class of datasets with images in files of a supported format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import numpy as np
from PIL import Image

from metafew.config.option_values import check_choice, check_integer
from metafew.data.formats.collection import Collection, fingerprint_files
from metafew.data.formats.conversion import Conversion
from metafew.data.formats.damage import intact, readable
from metafew.data.sources.source import Category, Source
from metafew.errors import UsageError

VERSION = 2  # of the conversion


class Collected(Source):
    """A dataset of images in one or more collections; a subclass implements :meth:`find`.

    Args:
        channels: 1 or 3; images are converted.
        image_size: height and width of the stored images, in pixels.
        fit: how images become squares: ``crop`` takes the central square, ``stretch`` resizes the full image, ``pad``
            adds margins.
        choices: ``invert``, ``white`` and ``background``; see :class:`~metafew.data.formats.conversion.Conversion`.

    Raises:
        UsageError: if an option has an invalid value.
    """

    def __init__(self, channels: int, image_size: int, fit: str, **choices: Any):
        check_choice("dataset.channels", channels, (3, 1))
        check_integer("dataset.image_size", image_size, 1, 84)
        self.channels, self.image_size = channels, image_size
        self.conversion: Conversion = Conversion(channels, image_size, fit, **choices)
        # Copied before the conversion decides any of them, as the fingerprint must not depend on the images.
        self._settings = (VERSION, channels, image_size, *self.conversion.options.values())

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the collections, and the class names of ``train``, ``val`` and ``test``.

        A class in several collections has the images of all of them.

        Raises:
            UsageError: if files are missing or damaged.
        """
        raise NotImplementedError

    def group(self, name: str) -> str:
        """Return the group of the class called ``name``; ``""`` if there are no groups."""
        return ""

    def splits(self) -> dict[str, list[Category]]:
        """Return the classes of each split; keys are pairs of the index of a collection and a key in it."""
        return self._found[1]

    @property
    def ignored(self) -> Mapping[str, int]:
        """The files that the collections do not read, and the images of classes outside of all splits."""
        collections, splits = self._found
        counts: Counter[str] = Counter()
        for collection in collections:
            counts.update(collection.ignored)
        used = {category.name for categories in splits.values() for category in categories}
        unused = [(name, keys) for each in collections for name, keys in each.classes.items() if name not in used]
        if unused:
            counts[f"image of {len({*dict(unused)})} classes in no split, such as {unused[0][0]}"] = sum(
                len(keys) for _, keys in unused
            )
        return dict(counts)

    def fingerprint(self) -> str:
        """Return a checksum of the files' paths, sizes and times, of the splits and of the options."""
        collections, splits = self._found
        digest = sha256(repr((self.name, self._settings, splits)).encode())
        for collection in collections:
            digest.update(fingerprint_files(collection.files).encode())
        return digest.hexdigest()

    def read(self, keys: Sequence[Any]) -> Iterator[np.ndarray]:
        """Read images one by one: uint8 ``(channels, image_size, image_size)``.

        Raises:
            UnreadableImages: after the last image, if some of them are damaged.
        """
        return intact(map(self._convert, self._open(keys)))

    def _open(self, keys: Sequence[Any]) -> Iterator[Image.Image | np.ndarray]:
        """Open images; the iterator continues after a damaged one."""
        groups = groupby(keys, itemgetter(0))
        return chain.from_iterable(self._found[0][number].open([key for _, key in group]) for number, group in groups)

    def _convert(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Convert an image, after examining all others if white or background is not given."""
        if self.conversion.depends_on_dataset(image):
            keys = [key for categories in self.splits().values() for each in categories for key in each.keys]
            self.conversion.decide(readable(self._open(keys), []))
        return self.conversion(image)

    def describe(self, key: Any) -> str:
        """Return the path of an image, or its row."""
        number, within = key
        if isinstance(within, tuple):  # of a parquet file
            return f"row {within[1]} of {self._found[0][number].files[within[0]].name}"
        return within if isinstance(within, str) else f"row {within}"

    @cached_property
    def _found(self) -> tuple[list[Collection], dict[str, list[Category]]]:
        """The collections, and the classes of each split."""
        collections, splits = self.find()
        images: dict[str, list[Hashable]] = {}
        for number, collection in enumerate(collections):
            for name, keys in collection.classes.items():
                images.setdefault(name, []).extend((number, key) for key in keys)
        missing = [(split, name) for split, names in splits.items() for name in names if not images.get(name)]
        if missing:
            split, name = missing[0]
            raise UsageError(
                f"expected images of class '{name}' in the {split} split of dataset={self.name}, but the files hold "
                f"none ({len(missing)} classes are missing; the files have {len(images)}, such as "
                f"'{next(iter(images), '')}'): complete the files, correct the splits, or type dataset.root=DIR of "
                "another copy"
            )
        return collections, {
            split: [Category(name, tuple(images[name]), group=self.group(name)) for name in names]
            for split, names in splits.items()
        }
