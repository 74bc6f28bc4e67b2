"""Common parts of mini-ImageNet and tieredImageNet: classes named by WordNet id, in folders or in files per split."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metafew.config.option_values import option_path
from metafew.data.formats.collection import Collection
from metafew.data.formats.scan import raise_unreadable
from metafew.data.formats.tree import Tree
from metafew.data.sources.collected import Collected
from metafew.data.sources.source import SPLITS
from metafew.errors import UsageError

WNID = re.compile(r"n\d{8}")
"""A WordNet id, such as n01532829."""


class ImageNetSubset(Collected):
    """Classes of ImageNet in colour, stretched to squares. ImageNet's terms do not allow downloads.

    Args:
        root: the folder of the files.
        image_size: height and width of the stored images, in pixels.
    """

    def __init__(self, root: str, image_size: int):
        super().__init__(channels=3, image_size=image_size, fit="stretch")
        self.root = option_path("dataset.root", root)

    def match_published(
        self, collections: Mapping[str, Collection], published: Mapping[str, Sequence[str]]
    ) -> dict[str, Sequence[str]]:
        """Return the class names of each split: the published ones, unless classes in the files are only numbered.

        Args:
            collections: the collection of each split.
            published: the WordNet ids of each published split.

        Raises:
            UsageError: if a collection has a class of another split, or another number of numbered classes than the
                published split.
        """
        names = {}
        for split, collection in collections.items():
            expected, where = published[split], os.path.commonpath(collection.files)
            foreign = [name for name in collection.classes if name not in expected]
            numbered = not any(WNID.fullmatch(name) for name in collection.classes)
            count = len(collection.classes)
            if numbered and count != len(expected):
                raise UsageError(
                    f"expected {len(expected)} classes for {split} of dataset={self.name}, but {where} holds {count}: "
                    "replace it, or type dataset.root=DIR of a complete copy"
                )
            if foreign and not numbered:
                raise UsageError(
                    f"dataset={self.name} has no class '{foreign[0]}' in {split}, but {where} has it (and "
                    f"{len(foreign) - 1} more that do not belong there, and {count - len(foreign)} that do): take them "
                    "out, or type dataset.root=DIR of another copy"
                )
            names[split] = list(collection.classes) if numbered else expected
        return names


def subfolders(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted; none if it does not exist."""
    try:
        return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    except OSError as error:
        raise_unreadable(error)


def class_folders(folder: Path) -> Tree | None:
    """Return the class folders in a folder if any is named by a WordNet id, else None."""
    return Tree(folder) if any(WNID.fullmatch(path.name) for path in subfolders(folder)) else None


def split_folders(root: Path) -> dict[str, Tree] | None:
    """Return the class folders in train/, val/ and test/ if all three have some, else None."""
    trees = {split: tree for split in SPLITS if (tree := class_folders(root / split))}
    return trees if len(trees) == len(SPLITS) else None


def name_labels(labels: np.ndarray, split: str) -> dict[Any, str]:
    """Return a class name for each label, such as ``train/07`` for 7; WordNet ids are kept."""
    values = np.unique(labels).tolist()
    width = max((len(str(value)) for value in values), default=0)
    return {value: str(value) if WNID.fullmatch(str(value)) else f"{split}/{value:0>{width}}" for value in values}
