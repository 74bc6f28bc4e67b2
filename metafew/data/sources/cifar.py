"""CIFAR-FS (Bertinetto et al. 2019) and FC100 (Oreshkin et al. 2018): CIFAR-100 (Krizhevsky 2009) split by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metafew.config.option_values import option_path
from metafew.data.download import Remote, obtain
from metafew.data.formats.archives import read
from metafew.data.formats.arrays import Arrays, read_dictionary
from metafew.data.formats.collection import Collection
from metafew.data.formats.damage import explain_damage
from metafew.data.sources.collected import Collected
from metafew.data.sources.source import shipped_split

FOLDER, BATCHES, NAMES = "cifar-100-python", ("train", "test"), "meta"
FILES = (*BATCHES, NAMES)
ARCHIVE = Remote(
    "cifar-100-python.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    "md5:eb9058c3a382ffc7106e4002c42a8d85",
    169001437,
)
ADVICE = f"replace it with the authors' {ARCHIVE.name}"
LIMIT = 2**29  # size limit of a file in the archive, in bytes; the largest has 155 million


class Cifar(Collected):
    """CIFAR-100 as distributed by its authors: 100 classes of 600 images, 32 x 32 pixels, in 20 superclasses.

    The authors' training and test images are pooled. A subclass implements :meth:`divide`.

    Args:
        root: the folder of cifar-100-python.tar.gz or, unpacked, cifar-100-python/.
        image_size: height and width of the stored images, in pixels.
        download: whether a missing archive is downloaded into ``root``.
    """

    def __init__(self, root: str, image_size: int, download: bool):
        super().__init__(channels=3, image_size=image_size, fit="crop")
        self.root, self.download = option_path("dataset.root", root), download

    def divide(self, superclass: Mapping[str, str]) -> dict[str, list[str]]:
        """Return the classes of each split, given the superclass of each class."""
        raise NotImplementedError

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the images of both files as one collection, and the class names of each split."""
        files = [self.root / FOLDER / name for name in FILES]
        if not all(file.is_file() for file in files):
            files = [obtain(self.root, ARCHIVE, self.download, self.name)]
        content = self._load(files)
        batches = [check_batch(content[name], f"{name} in {files[0].parent}") for name in BATCHES]
        fine, coarse = (np.concatenate([each[key] for each in batches]) for key in ("fine_labels", "coarse_labels"))
        meta, where = content[NAMES], f"{NAMES} in {files[0].parent}"
        with explain_damage(where, "the class names of CIFAR-100", IndexError, KeyError, TypeError, advice=ADVICE):
            classes = dict(enumerate(map(str, meta["fine_label_names"])))
            pairs = sorted(dict(zip(fine.tolist(), coarse.tolist(), strict=True)).items())
            superclass = {classes[label]: str(meta["coarse_label_names"][above]) for label, above in pairs}

        def images() -> np.ndarray:
            content = self._load(files)
            data = np.concatenate([content[name]["data"] for name in BATCHES])
            return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

        return [Arrays(images, fine, classes, files)], self.divide(superclass)

    def _load(self, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
        """Return the content of the authors' files by name, from either the unpacked files or the archive."""
        if len(files) > 1:
            return {file.name: read_dictionary(file) for file in files}
        members = read(files[0], [f"{FOLDER}/{name}" for name in FILES], LIMIT)
        # Popped, so that only one file at a time is in memory in both forms, pickled and unpickled.
        return {
            name: read_dictionary(members.pop(f"{FOLDER}/{name}"), f"{FOLDER}/{name} in {files[0]}") for name in FILES
        }


def check_batch(content: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """Return the images ``(n, 3072)`` and labels of a file; raises UsageError if they are missing."""
    kind = "data (uint8, 3072 for each image), fine_labels and coarse_labels"
    with explain_damage(where, kind, KeyError, ValueError, advice=ADVICE):  # ValueError: rows of different lengths
        found = {key: np.asarray(content[key]) for key in ("data", "fine_labels", "coarse_labels")}
        count, shapes = found["fine_labels"].size, [array.shape for array in found.values()]
        if shapes != [(count, 3072), (count,), (count,)] or found["data"].dtype != np.uint8:
            raise ValueError(", ".join(f"{key} {array.dtype} {array.shape}" for key, array in found.items()))
    return found


class CIFARFS(Cifar):
    """CIFAR-FS: 64, 16 and 20 classes of CIFAR-100, drawn at random by its authors; see :class:`Cifar`."""

    name = "cifar_fs"
    published_images = 60_000

    def divide(self, superclass: Mapping[str, str]) -> dict[str, list[str]]:
        return {split: [name for _, name in pairs] for split, pairs in shipped_split(self.name).items()}


class FC100(Cifar):
    """FC100: 60, 20 and 20 classes of CIFAR-100, each superclass in a single split; see :class:`Cifar`."""

    name = "fc100"
    published_images = 60_000

    def divide(self, superclass: Mapping[str, str]) -> dict[str, list[str]]:
        return {
            split: [name for name, above in superclass.items() if above in superclasses]
            for split, superclasses in shipped_split(self.name).items()
        }
