"""Your own images: folders of classes, a list of files, or arrays, divided into splits by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from metafew.data.formats import Collection
from metafew.data.formats.arrays import Arrays, opened, read_npz
from metafew.data.formats.tree import Tree, hidden
from metafew.data.sources import SPLITS
from metafew.data.sources.class_splits import WORDS, check_fractions, divide, read_pairs, refuse_repeats
from metafew.data.sources.collected import Collected
from metafew.errors import UsageError


class Folder(Collected):
    """Images of your own.

    Args:
        root: A folder with a folder of images for each class, at any depth; a class is named by its path in `root`, and
            the path above its last name is its group. Where `splits` is None and all folders in `root` are called
            train, val (valid, validation) or test, each holds the classes of that split. Or an .npz file of images
            `x`, uint8 of shape (n, h, w[, c]), labels `y`, (n,) integers or strings, and perhaps the class names of
            labels 0, 1, ...: `names`.
        splits: A JSON file of the class names of 'train', 'val' and 'test', or a CSV file of classes and splits; see
            `metafew.data.sources.class_splits.divide`. Classes that it leaves out are not used. None draws the splits.
        labels: A CSV file, with a header, of file names in `root` and class names; None takes the folders.
        fractions: Of the classes for 'train', 'val' and 'test', where splits are drawn.
        split_seed: What the draw follows from.
        channels: 1 or 3; images are converted.
        image_size: Height and width of the stored images, in pixels.
        fit: 'crop' takes the middle of an image, 'stretch' takes all of it.
        invert: Whether images are drawings in dark ink on light ground, to be stored with ink 255 on ground 0.

    Raises:
        UsageError: A setting cannot be what was typed.
    """

    name = "folder"

    def __init__(
        self,
        root: str | None,
        splits: str | None,
        labels: str | None,
        fractions: Sequence[float],
        split_seed: int,
        channels: int,
        image_size: int,
        fit: str,
        invert: bool,
    ):
        super().__init__(channels, image_size, fit)
        check_fractions(fractions)
        self.root, self.listing, self.labels = root and Path(root).expanduser(), splits, labels
        self.fractions, self.split_seed, self.invert = fractions, split_seed, invert

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the images, and the names of the classes of each split.

        Raises:
            UsageError: Files are missing, or are not what they should be.
        """
        if self.root is None:
            raise UsageError("dataset=folder wants a folder of images and was given none: type dataset.root=DIR")
        arrays = self.root.suffix.lower() == ".npz"
        if arrays and self.labels is not None:
            raise UsageError(
                f"{self.root} holds labels of its own, so that dataset.labels={self.labels} has no use: type "
                f"dataset.labels=null"
            )
        if self.labels is not None:
            images = Tree.listed(self.root, read_labels(self._path("labels", self.labels)))
        elif arrays:
            images = read_arrays(self.root)
        elif self.listing is None and (folders := find_splits(self.root)):
            trees = {split: Tree(folders[split]) for split in SPLITS if split in folders}
            splits = {split: list(trees[split].classes) if split in trees else [] for split in SPLITS}
            refuse_repeats(splits, self.root)
            return list(trees.values()), splits
        else:
            images = Tree(self.root)
        listing = None if self.listing is None else self._path("splits", self.listing)
        return [images], divide(images.classes, listing, self.fractions, self.split_seed)

    def group(self, name: str) -> str:
        """Return the path above the folder of a class, such as its alphabet; '' where there is none."""
        return name.rpartition("/")[0]

    def fingerprint(self) -> str:
        """Return a checksum of names, sizes and times of change of the files, of the splits and of the settings."""
        return sha256(f"{super().fingerprint()} {self.invert}".encode()).hexdigest()

    def read(self, keys: Sequence[Hashable]) -> Iterator[np.ndarray]:
        """Read images one by one: uint8 of shape (channels, image_size, image_size)."""
        images = super().read(keys)
        return (255 - image for image in images) if self.invert else images

    def _path(self, setting: str, typed: str) -> Path:
        """The file of a setting: as typed, or else in `root`."""
        for path in (Path(typed).expanduser(), self.root / typed):
            if path.is_file():
                return path
        raise UsageError(
            f"dataset.{setting}={typed} is a file neither here nor in {self.root}: type dataset.{setting}=FILE"
        )


def find_splits(root: Path) -> dict[str, Path]:
    """Return the folder of each split, where `root` holds no other folders; otherwise nothing."""
    folders = sorted(path for path in root.glob("*/") if not hidden(path.name))
    if not all(path.name.lower() in WORDS for path in folders):
        return {}
    found = {WORDS[path.name.lower()]: path for path in folders}
    if len(found) < len(folders):
        raise UsageError(
            f"{root} should hold one folder a split and holds {', '.join(path.name for path in folders)}: keep one of "
            f"those for the same split"
        )
    return found


def read_arrays(file: Path) -> Arrays:
    """Read an .npz file of images, labels and perhaps `names`, the class names of labels 0, 1, ..."""
    images, labels, names = read_npz(file)
    with opened(file) as arrays:
        if "names" in arrays:
            names = dict(enumerate(map(str, arrays["names"].ravel())))
            unnamed = sorted(set(labels.tolist()) - set(names), key=str)
            if unnamed or len(set(names.values())) < len(names):
                wrong = f"none for label {unnamed[0]}" if unnamed else "the same twice"
                raise UsageError(
                    f"names in {file} should be a name for each label and has {len(names)}, {wrong}: correct the file"
                )
    return Arrays(images, labels, names, [file])


def read_labels(file: Path) -> list[tuple[str, str]]:
    """Read a CSV file of image files and classes."""
    rows = read_pairs(file, "file and class")
    image, times = max(Counter(image for image, _ in rows).items(), key=lambda item: item[1])
    if times > 1:
        raise UsageError(f"{file} should list an image once and lists {image} {times} times: correct the file")
    return rows
