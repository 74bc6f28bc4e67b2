"""features: precomputed feature vectors instead of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from metafew.config.option_values import check_choice, option_path
from metafew.data.duplicates import POLICIES
from metafew.data.formats.arrays import open_npz, read_array, unused_arrays
from metafew.data.formats.collection import fingerprint_files
from metafew.data.formats.labels import class_labels
from metafew.data.formats.names import class_name, data_name, natural_order
from metafew.data.sources.source import SPLITS, Category, Source
from metafew.errors import UsageError

VERSION = 1  # of the conversion


class Content(NamedTuple):
    """The content of a file of vectors.

    Attributes:
        length: the length of a vector.
        classes: the class of each vector, by split.
        ignored: the arrays that are not read.
    """

    length: int
    classes: dict[str, np.ndarray]
    ignored: dict[str, int]


class Features(Source):
    """Vectors and their classes, for heads and measures that need no images.

    A vector of ``d`` numbers is stored as a float32 image with ``d`` channels and one pixel.

    Args:
        root: an .npz file with ``x_SPLIT``, ``(n, d)`` numbers, and ``y_SPLIT``, ``n`` numbers or strings that name the
            classes, for at least one of the splits train, val and test.
        duplicates: how to treat equal vectors: ``warn``, ``error`` (refuse them) or ``drop``.

    Raises:
        UsageError: if there is no such file.
    """

    name = "features"
    image_size = 1
    dtype = np.float32

    def __init__(self, root: str | int | None, duplicates: str = POLICIES[0]):
        check_choice("dataset.duplicates", duplicates, POLICIES)
        self.root, self.duplicates = option_path("dataset.root", root, "FILE.npz"), duplicates
        if not self.root.is_file():
            raise UsageError(
                f"expected an .npz file for dataset=features, but {root} is not a file: type dataset.root=FILE.npz"
            )

    @property
    def display_name(self) -> str:
        """The name of the file, or the name in a mixture."""
        return self.label or data_name(self.root)

    @property
    def channels(self) -> int:  # type: ignore[override]  # read from the file, and never set
        """The length of the vectors."""
        return self._content.length

    def splits(self) -> dict[str, list[Category]]:
        """Return the classes of each split; a split missing from the file has none.

        Raises:
            UsageError: if the file does not have the expected arrays.
        """
        splits: dict[str, list[Category]] = {split: [] for split in SPLITS}
        for split, y in self._content.classes.items():
            splits[split] = [c._replace(keys=tuple((split, row) for row in c.keys)) for c in categories(y)]
        return splits

    @property
    def ignored(self) -> Mapping[str, int]:
        """The arrays that are not read."""
        return self._content.ignored

    def fingerprint(self) -> str:
        """Return a checksum of the file's path, size and times."""
        return sha256(f"{VERSION} {fingerprint_files([self.root])}".encode()).hexdigest()

    def describe(self, key: tuple[str, int]) -> str:
        """Return the row of a vector."""
        return f"row {key[1]} of x_{key[0]}"

    def read(self, keys: Sequence[tuple[str, int]]) -> Iterator[np.ndarray]:
        """Read vectors one by one: float32 ``(d, 1, 1)``."""
        for split, group in groupby(keys, itemgetter(0)):
            vectors, _ = self._load(split)
            yield from (vectors[row].reshape(-1, 1, 1) for _, row in group)

    @cached_property
    def _content(self) -> Content:
        """The content of the file."""
        classes, shapes = {}, {}
        with open_npz(self.root) as file:
            names = list(file)
            splits = [split for split in SPLITS if {f"x_{split}", f"y_{split}"} <= set(names)]
            ignored = unused_arrays(self.root, file, [f"{letter}_{split}" for split in splits for letter in "xy"])
        for split in splits:
            x, classes[split] = self._load(split)
            shapes[split] = x.shape
        if len({length for _, length in shapes.values()}) != 1:
            found = [f"x_{split} {shape}" for split, shape in shapes.items()] or names or ["nothing"]
            raise UsageError(
                f"expected x_SPLIT and y_SPLIT for train, val or test in {self.root}, vectors of one length and their "
                f"classes, got {', '.join(found)}: write the file with numpy.savez"
            )
        return Content(next(iter(shapes.values()))[1], classes, ignored)

    def _load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors of a split in float32, and their classes; raises UsageError for other content."""
        with open_npz(self.root) as file:
            x, y = (read_array(file, f"{letter}_{split}", self.root) for letter in "xy")
        where = f"x_{split} and y_{split} in {self.root}"
        return labelled_vectors(x, y, where, f"y_{split} of {self.root}", "write them with numpy.savez")


def labelled_vectors(x: np.ndarray, y: Any, where: str, labels: str, advice: str) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors ``(n, d)`` in float32 and their classes as integers or strings.

    Args:
        x: the vectors.
        y: their classes.
        where: the name of both in error messages.
        labels: the name of the classes.
        advice: what to do about other content.

    Raises:
        UsageError: if the vectors are not finite numbers ``(n, d)``, or there is not one class for each.
    """
    y = class_labels(y, labels)
    if x.dtype.kind in "fiu" and x.ndim == 2 and y.shape == x.shape[:1] and x.shape[1] > 0:
        with np.errstate(over="ignore"):
            vectors = x.astype(np.float32)
        if np.isfinite(vectors).all():
            return vectors, y
    raise UsageError(
        f"expected {where} to be finite numbers (n, d) and n classes, got {x.dtype} {x.shape} and {y.dtype} "
        f"{y.shape}, or not finite: {advice}"
    )


def categories(labels: np.ndarray) -> list[Category]:
    """Return the classes of labelled rows in the natural order of their names, with the numbers of rows as keys.

    >>> categories(np.array(["b", "a", "b"]))[1]
    Category(name='b', keys=(0, 2), turns=0, group='')
    """
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        rows.setdefault(class_name(label), []).append(row)
    return [Category(name, tuple(rows[name])) for name in sorted(rows, key=natural_order)]
