"""folder: custom images in class folders, a list of files, or an .npz file, divided into splits by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from metafew.data.formats.arrays import Arrays, open_npz, read_npz
from metafew.data.formats.collection import Collection
from metafew.data.formats.tree import Tree, hidden
from metafew.data.sources.class_splits import (
    WORDS,
    check_disjoint,
    check_fractions_sum_to_one,
    divide,
    read_csv_pairs,
)
from metafew.data.sources.collected import Collected
from metafew.data.sources.source import SPLITS
from metafew.errors import UsageError


class Folder(Collected):
    """Custom images.

    Args:
        root: a folder with a folder of images for each class, at any depth. A class is named by its path in ``root``,
            and the path above its last part is its group. If ``splits`` is None and all folders in ``root`` are called
            train, val (valid, validation) or test, each holds the classes of that split. Or an .npz file of images
            ``x``, uint8 ``(n, h, w[, c])``, labels ``y``, ``(n,)`` integers or strings, and optionally ``names``, the
            class names of labels 0, 1, ...
        splits: a JSON or CSV file of the classes of each split; see
            :func:`~metafew.data.sources.class_splits.divide`. Classes that are not listed are not used. None draws the
            splits.
        labels: a CSV file, with a header, of file names in ``root`` and class names; None takes the folders.
        fractions: fractions of the classes in ``train``, ``val`` and ``test``, if splits are drawn.
        split_seed: seed of that draw.
        channels: 1 or 3; images are converted.
        image_size: height and width of the stored images, in pixels.
        fit: ``crop`` takes the middle of an image, ``stretch`` resizes the entire image, ``pad`` adds margins.
        invert: whether images are drawings in dark ink on a light background, to be stored with ink 255 on 0.
        white: the value of white in images of more than 8 bits; None decides it for all of them (see
            :meth:`~metafew.data.formats.conversion.Conversion.decide`).
        background: ``white`` or ``black``, behind transparent pixels and in margins; None decides it for all images.

    Raises:
        UsageError: if an option has an invalid value.
    """

    name = "folder"
    own_images = True

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
        white: float | None,
        background: str | None,
    ):
        super().__init__(channels, image_size, fit, invert=invert, white=white, background=background)
        check_fractions_sum_to_one(fractions)
        self.root = Path(root).expanduser() if root else None
        self.listing, self.labels = splits, labels
        self.fractions, self.split_seed = fractions, split_seed

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the images, and the class names of each split."""
        if self.root is None:
            raise UsageError("expected a folder of images for dataset=folder, got none: type dataset.root=DIR")
        arrays = self.root.suffix.lower() == ".npz"
        if arrays and self.labels is not None:
            raise UsageError(
                f"expected dataset.labels=null, as {self.root} contains labels, got {self.labels}: type "
                "dataset.labels=null"
            )
        if self.labels is not None:
            images = Tree(self.root, read_labels(find_file(self.root, "labels", self.labels)))
        elif arrays:
            images = read_arrays(self.root)
        elif self.listing is None and (folders := find_split_folders(self.root)):
            trees = {split: Tree(folders[split]) for split in SPLITS if split in folders}
            splits = {split: list(trees[split].classes) if split in trees else [] for split in SPLITS}
            check_disjoint(splits, self.root)
            return list(trees.values()), splits
        else:
            images = Tree(self.root)
        listing = None if self.listing is None else find_file(self.root, "splits", self.listing)
        self.drawn = listing is None
        return [images], divide(images.classes, listing, self.fractions, self.split_seed)

    def group(self, name: str) -> str:
        """Return the path above the folder of a class, such as its alphabet; ``""`` if there is none."""
        return name.rpartition("/")[0]


def find_file(root: Path, option: str, name: str) -> Path:
    """Return the file of an option, relative to the working directory or else to ``root``."""
    for path in (Path(name).expanduser(), root / name):
        if path.is_file():
            return path
    raise UsageError(
        f"expected a file in dataset.{option}, but {name} exists neither in the working directory nor in {root}: type "
        f"dataset.{option}=FILE"
    )


def find_split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; an empty dictionary if ``root`` holds other folders."""
    folders = sorted(path for path in root.glob("*/") if not hidden(path.name))
    if not all(path.name.lower() in WORDS for path in folders):
        return {}
    found = {WORDS[path.name.lower()]: path for path in folders}
    if len(found) < len(folders):
        raise UsageError(
            f"expected one folder for each split in {root}, got {', '.join(path.name for path in folders)}: keep one "
            "of those for the same split"
        )
    return found


def read_arrays(file: Path) -> Arrays:
    """Read an .npz file of images, labels and optionally ``names``, the class names of labels 0, 1, ..."""
    images, labels, names = read_npz(file)
    with open_npz(file) as arrays:
        if "names" in arrays:
            names = dict(enumerate(map(str, arrays["names"].ravel())))
            unnamed = sorted(set(labels.tolist()) - set(names), key=str)
            if unnamed or len(set(names.values())) < len(names):
                problem = f"none for label {unnamed[0]}" if unnamed else "the same twice"
                raise UsageError(
                    f"expected names in {file} to be a different name for each label, got {len(names)}, {problem}: "
                    "correct the file"
                )
    return Arrays(images, labels, names, [file])


def read_labels(file: Path) -> list[tuple[str, str]]:
    """Read a CSV file of image files and classes; raises UsageError if it lists an image more than once."""
    rows = read_csv_pairs(file, "file and class")
    ((image, times),) = Counter(image for image, _ in rows).most_common(1)
    if times > 1:
        raise UsageError(f"expected {file} to list an image once, got {image} {times} times: correct the file")
    return rows
