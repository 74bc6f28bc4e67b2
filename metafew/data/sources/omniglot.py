"""Omniglot (Lake, Salakhutdinov & Tenenbaum 2015): 1,623 characters of 50 alphabets, each drawn by 20 people."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from metafew.config.option_values import check_choice, check_integer, option_path
from metafew.data.download import Remote, obtain
from metafew.data.formats.conversion import Conversion
from metafew.data.formats.damage import explain_damage, intact
from metafew.data.formats.images import decode
from metafew.data.sources.source import SPLITS, Category, Source, shipped_split
from metafew.errors import UsageError

CHARACTERS = {"images_background": 964, "images_evaluation": 659}
DRAWINGS = 20  # per character
URLS = (
    "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/",
    "https://github.com/brendenlake/omniglot/raw/master/python/",
)
MD5 = {
    "images_background": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "6b91aef0f799c5bb55b94e3f2daec811",
}
VERSION = 1  # of the conversion


class Omniglot(Source):
    """Handwritten characters as classes, read from the authors' two zip archives without unpacking.

    Args:
        root: the folder of images_background.zip and images_evaluation.zip.
        split: ``lake``, the authors' split: the 659 evaluation characters for testing and, of the 30 background
            alphabets, the five of ``vinyals`` for validation. ``vinyals`` (Vinyals et al. 2016): 1028, 172 and 423
            characters, each in four rotations that are separate classes.
        image_size: height and width of the images, in pixels; the drawings of 105 x 105 pixels are averaged by area.
        download: whether missing archives are downloaded into ``root``.

    Raises:
        UsageError: if the split is neither of the two.
    """

    name = "omniglot"
    published_images = 32_460
    channels = 1
    drawings = True

    def __init__(self, root: str, split: str, image_size: int, download: bool):
        published = shipped_split(self.name)
        check_choice("dataset.split", split, list(published))
        check_integer("dataset.image_size", image_size, 1, 28)
        self.conversion: Conversion = Conversion(self.channels, image_size, invert=True, resample="area")
        self.root, self.split = option_path("dataset.root", root), split
        self.image_size, self.download = image_size, download
        self._held_out = {part: tuple(prefixes) for part, prefixes in published[split].items()}

    def splits(self) -> dict[str, list[Category]]:
        """Return the characters of each split, named alphabet/character or alphabet/character/rot090."""
        splits: dict[str, list[Category]] = {split: [] for split in SPLITS}
        rotations = {f"/rot{90 * turns:03}": turns for turns in range(4)} if self.split == "vinyals" else {"": 0}
        for character, drawings in groupby(sorted(self._drawings), key=os.path.dirname):
            name, keys = character.partition("/")[2], tuple(drawings)
            split = next((s for s, prefixes in self._held_out.items() if keys[0].startswith(prefixes)), "train")
            alphabet = name.partition("/")[0]
            splits[split] += [Category(name + suffix, keys, turns, alphabet) for suffix, turns in rotations.items()]
        return splits

    def fingerprint(self) -> str:
        """Return a checksum of the drawings (by their CRC-32 in the archives), the split and the image size."""
        settings = (VERSION, self.image_size, self.split, self._held_out, sorted(self._drawings.items()))
        return sha256(repr(settings).encode()).hexdigest()

    def read(self, keys: Sequence[str]) -> Iterator[np.ndarray]:
        """Read drawings one by one: uint8 ``(1, image_size, image_size)``, ink 255."""
        with ExitStack() as stack:
            archives = {name: stack.enter_context(ZipFile(self._archive(name))) for name in CHARACTERS}

            def read_drawing(key: str) -> np.ndarray:
                archive = archives[key.partition("/")[0]]
                where = f"{key} in {archive.filename}"
                with explain_damage(where, "an image", BadZipFile, OSError), archive.open(key) as file:
                    return self.conversion(decode(file, where))

            yield from intact(map(read_drawing, keys))

    @cached_property
    def _drawings(self) -> dict[str, int]:
        """The CRC-32 of the drawings in both archives, by key."""
        return {key: crc for name in CHARACTERS for key, crc in list_drawings(self._archive(name)).items()}

    def _archive(self, name: str) -> Path:
        """Return the path of an archive, and download it if it is missing."""
        file = f"{name}.zip"
        remote = Remote(file, tuple(base + file for base in URLS), f"md5:{MD5[name]}")
        return obtain(self.root, remote, self.download, self.name)


def list_drawings(path: Path) -> dict[str, int]:
    """Return the CRC-32 of the drawings in an archive, by name; raises UsageError if it is incomplete."""
    drawing, found = re.compile(rf"{path.stem}/[^/]+/[^/]+/\d{{4}}_\d\d\.png"), {}
    with explain_damage(path, "a zip file", OSError), suppress(BadZipFile), ZipFile(path) as archive:
        found = {info.filename: info.CRC for info in archive.infolist() if drawing.fullmatch(info.filename)}
    counts, expected = Counter(map(os.path.dirname, found)), CHARACTERS[path.stem]
    if len(counts) != expected or set(counts.values()) != {DRAWINGS}:
        raise UsageError(
            f"expected {path} to be a zip file of {expected} characters with {DRAWINGS} drawings each, got "
            f"{len(counts)} characters, {len(found)} drawings: replace it, or type data_dir=PATH with a good copy in "
            "PATH/omniglot"
        )
    return found
