"""folder: custom images in class folders, a list of files, or an .npz file, divided into splits by class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from metafew.config.option_values import check_choice, option_path
from metafew.data.duplicates import POLICIES
from metafew.data.formats.arrays import Arrays, read_npz
from metafew.data.formats.collection import Collection
from metafew.data.formats.columns import check_columns, check_columns_are_read, read_columns
from metafew.data.formats.names import data_name
from metafew.data.formats.scan import Scan
from metafew.data.formats.tree import Tree
from metafew.data.sources.class_folders import LAYOUTS, read_class_folders
from metafew.data.sources.class_splits import check_fractions_sum_to_one, divide, find_file
from metafew.data.sources.collected import Collected
from metafew.errors import UsageError

log = logging.getLogger(__name__)


class Folder(Collected):
    """Custom images.

    Args:
        root: a folder with a folder of images for each class; see
            :func:`~metafew.data.sources.class_folders.read_class_folders`. A class is named by its path in ``root``,
            and the path above its last part is its group. Or an .npz file of images ``x``, uint8 ``(n, h, w[, c])``,
            labels ``y``, ``(n,)`` integers or strings, and optionally ``names``, the class names of labels 0, 1, ...
        layout: what the folders in ``root`` are: ``auto``, ``classes``, ``top`` or ``splits``. With ``splits=FILE``,
            ``auto`` means ``classes``.
        splits: a JSON or CSV file of the classes of each split; see
            :func:`~metafew.data.sources.class_splits.divide`. Unlisted classes are not used. None draws the splits.
        labels: a CSV file, with a header, of file names in ``root`` and class names; None uses the folders as classes.
        columns: the names of the columns ``file``, ``class`` and ``split`` in these CSV files; None for the usual ones,
            :data:`~metafew.data.formats.columns.USUAL`.
        fractions: fractions of the classes in ``train``, ``val`` and ``test``, if splits are drawn.
        split_seed: seed of that draw.
        channels: 1 or 3; images are converted.
        image_size: height and width of the stored images, in pixels.
        fit: ``crop`` takes the central square of an image, ``stretch`` resizes the full image, ``pad`` adds margins.
        invert: whether images are drawings in dark ink on a light background, to be stored with ink 255 on 0.
        white: the value of white in images of more than 8 bits; None for 65535 or, if there are images in floating
            point, a value derived from all (see :meth:`~metafew.data.formats.conversion.Conversion.decide`).
        background: ``white`` or ``black``, behind transparent pixels and in margins; None for white, unless more
            transparent images are faint on white than on black.
        duplicates: how to treat equal images: ``warn``, ``error`` (refuse them) or ``drop``.

    Raises:
        UsageError: if an option has an invalid value.
    """

    name = "folder"
    own_images = True

    def __init__(
        self,
        root: str | int | None,
        layout: str,
        splits: str | None,
        labels: str | None,
        columns: Mapping[str, str] | None,
        fractions: Sequence[float],
        split_seed: int,
        channels: int,
        image_size: int,
        fit: str,
        invert: bool,
        white: float | None,
        background: str | None,
        duplicates: str = POLICIES[0],
    ):
        super().__init__(channels, image_size, fit, invert=invert, white=white, background=background)
        check_choice("dataset.duplicates", duplicates, POLICIES)
        check_fractions_sum_to_one(fractions)
        check_choice("dataset.layout", layout, LAYOUTS)
        self.root, self.listing, self.labels, self.layout = root, splits, labels, layout
        self.columns, self.duplicates = check_columns(columns), duplicates
        self.fractions, self.split_seed = fractions, split_seed

    @property
    def display_name(self) -> str:
        """The name of the folder or file, or the name in a mixture."""
        return self.label or (self.title if self.root is None else data_name(self.root))

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the images, and the class names of each split."""
        root = option_path("dataset.root", self.root)
        arrays = root.suffix.lower() == ".npz"
        if arrays and self.labels is not None:
            raise UsageError(
                f"expected dataset.labels=null, as {root} contains labels, got {self.labels}: type dataset.labels=null"
            )
        if self.layout != "auto" and (arrays or self.labels is not None):
            raise UsageError(
                f"expected dataset.layout=auto, as {root if arrays else self.labels} contains the labels, got "
                f"{self.layout}: type dataset.layout=auto"
            )
        check_columns_are_read(self.columns, [self.labels, self.listing])
        images: Arrays | Tree
        if self.labels is not None:
            images = read_labelled(root, find_file(root, "labels", self.labels), self.columns)
        elif arrays:
            found = read_npz(root)
            images = Arrays(found.images, found.labels, found.names, [root], found.ignored)
        else:
            # A file of splits names the class folders.
            layout = "classes" if self.listing is not None and self.layout == "auto" else self.layout
            images, splits = read_class_folders(root, layout)
            if splits is not None and self.listing is None:
                return [images], splits
        listing = None if self.listing is None else find_file(root, "splits", self.listing)
        self.drawn = listing is None
        return [images], divide(images.classes, listing, self.fractions, self.split_seed, self.columns)

    def group(self, name: str) -> str:
        """Return the path above the folder of a class, such as its alphabet; ``""`` if there is none."""
        return name.rpartition("/")[0]


def relative_to(root: Path, image: str) -> str:
    """Return the path of an image relative to ``root`` if it is absolute and below it, else as it is.

    >>> relative_to(Path("/photos"), "/photos/a/../b.png"), relative_to(Path("/photos"), "/b.png")
    ('b.png', '/b.png')
    """
    path, folder = Path(os.path.normpath(image)), os.path.abspath(root)
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def read_labelled(root: Path, file: Path, columns: Mapping[str, str]) -> Tree:
    """Read the images and classes in a CSV file; raises UsageError if it lists an image more than once."""
    table = read_columns(file, ("file", "class"), columns)
    rows = [(relative_to(root, image), name) for _, (image, name) in table.rows]
    ((image, times),) = Counter(image for image, _ in rows).most_common(1)
    if times > 1:
        raise UsageError(f"expected {file} to list an image once, got {image} {times} times: correct the file")
    images = Tree(root, rows)
    listed = {key for keys in images.classes.values() for key in keys}
    found = Scan(root).images
    left_out = sum(os.path.join(folder, name) not in listed for folder, names in found.items() for name in names)
    images.ignored = {f"column {name} of {file.name}": len(rows) for name in table.unused}
    if left_out:
        images.ignored[f"image that {file.name} does not list"] = left_out
    if table.unused:
        log.warning("%s has columns that are not read: %s", file, ", ".join(table.unused))
    return images
