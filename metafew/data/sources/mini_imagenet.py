"""mini-ImageNet (Vinyals et al., 2016; the split of Ravi & Larochelle, 2017): 100 ImageNet classes of 600 images."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metafew.data.formats import Collection
from metafew.data.formats.arrays import Arrays, read_npz, read_pickle
from metafew.data.formats.parquet import Parquet
from metafew.data.formats.tree import Tree
from metafew.data.sources import SPLITS, shipped_split
from metafew.data.sources.collected import Collected
from metafew.errors import UsageError

TOGETHER = "train, val and test"  # what does not tell them apart but by WordNet ids
WNID = re.compile(r"n\d{8}")
FILES = (
    [f"mini-imagenet-cache-{split}.pkl" for split in SPLITS],
    [f"miniImageNet_category_split_{split}.pickle" for split in ("train_phase_train", "val", "test")],
    [f"mini-imagenet-{split}.npz" for split in SPLITS],
    [f"mini_imagenet_{split}.npz" for split in SPLITS],
    [f"{split}.npz" for split in SPLITS],
)
"""The files of the three splits, as several authors have named them."""


class MiniImageNet(Collected):
    """mini-ImageNet in whatever form it was passed on; ImageNet's terms allow no download.

    Files that hold WordNet ids are checked against the split of Ravi & Larochelle; files that hold only numbers are
    their own split, with classes such as 'train/00'. Parquet files should hold the benchmark's 600 images a class:
    timm/mini-imagenet on the Hugging Face hub has the same classes, and 650 images of each.

    Args:
        root: The folder of the files: class folders named by WordNet id, in `root` or one folder below; train.csv,
            val.csv and test.csv beside a folder of images; pickles or .npz files of the three splits; parquet files.
        image_size: Height and width of the stored images, in pixels.
    """

    name = "mini_imagenet"

    def __init__(self, root: str, image_size: int):
        super().__init__(channels=3, image_size=image_size, fit="stretch")
        self.root = Path(root)

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the collections of the first form that is there, and the names of the classes of each split."""
        published = shipped_split(self.name)
        root, together = self.root, {TOGETHER: [name for names in published.values() for name in names]}
        parts = split_folders(root) or whole_folders(root) or listed(root) or split_files(root) or parquet(root)
        if not parts:
            raise UsageError(
                f"dataset={self.name} needs images in {root}, which holds none, and ImageNet's terms forbid fetching "
                "them: put there class folders named by WordNet id (n01532829/, images/n01532829/ or "
                "train/n01532829/), or images/ with train.csv, val.csv and test.csv (filename,label), or the three "
                f"files of {', '.join(names[0] for names in FILES)}, or *.parquet, or type dataset.root=DIR"
            )
        names = checked(self.name, parts, published | together)
        return list(parts.values()), published if TOGETHER in parts else names


def folders(root: Path) -> list[Path]:
    """Return a folder and the folders in it; none where it does not exist."""
    try:
        return [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    except OSError as error:
        raise UsageError(
            f"{root} cannot be listed ({error.strerror}): make it readable, or move it elsewhere"
        ) from error


def class_folders(folder: Path) -> Tree | None:
    """Return the class folders in a folder, if any there is named by WordNet id."""
    return Tree(folder) if any(WNID.fullmatch(path.name) for path in folders(folder)[1:]) else None


def split_folders(root: Path) -> dict[str, Collection] | None:
    """Return the class folders of each split, in folders of their own."""
    parts = {split: class_folders(root / split) for split in SPLITS}
    return parts if all(parts.values()) else None


def whole_folders(root: Path) -> dict[str, Collection] | None:
    """Return the class folders of all splits, in a folder or in the first below it that has any."""
    found = next(filter(None, map(class_folders, folders(root))), None)
    return found and {TOGETHER: found}


def listed(root: Path) -> dict[str, Collection] | None:
    """Return the images that three .csv files list, in images/ or beside them."""
    if not all((root / f"{split}.csv").is_file() for split in SPLITS):
        return None
    folder = root / "images" if (root / "images").is_dir() else root
    return {split: Tree.listed(folder, read_rows(root / f"{split}.csv")) for split in SPLITS}


def read_rows(file: Path) -> list[tuple[str, str]]:
    """Return the file name and the class of each image that a .csv file lists."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [(row["filename"], row["label"]) for row in csv.DictReader(lines)]
        if not rows or not all(map(all, rows)):
            raise ValueError("it has no lines, or one that lacks either")
    except (KeyError, ValueError, csv.Error) as error:
        raise UsageError(
            f"{file} should be lines of text with the columns filename and label and is not "
            f"({type(error).__name__}: {error}): replace it"
        ) from error
    return rows


def split_files(root: Path) -> dict[str, Collection] | None:
    """Return the arrays of each split, in files of their own."""
    for names in FILES:
        if all((root / name).is_file() for name in names):
            return {split: arrays(root / name, split) for split, name in zip(SPLITS, names, strict=True)}
    return None


def arrays(file: Path, split: str) -> Arrays:
    """Return the images of one split in a pickle or an .npz file."""
    images, labels, names = (read_npz if file.suffix == ".npz" else read_pickle)(file)
    own = {label: name if WNID.fullmatch(name) else f"{split}/{name}" for label, name in (names or {}).items()}
    return Arrays(images, labels, own or numbered(labels, split), [file])


def numbered(labels: np.ndarray, split: str) -> dict[Any, str]:
    """Return class names for labels, numbers such as 7 becoming 'train/07'; WordNet ids stay."""
    values = np.unique(labels).tolist()
    width = max((len(str(value)) for value in values), default=0)
    return {value: str(value) if WNID.fullmatch(str(value)) else f"{split}/{value:0>{width}}" for value in values}


def parquet(root: Path) -> dict[str, Collection] | None:
    """Return the images of all parquet files below a folder."""
    files = sorted(root.rglob("*.parquet"))
    return {TOGETHER: Parquet(files)} if files else None


def checked(
    dataset: str, parts: Mapping[str, Collection], published: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Return the names of the classes of each part: the published ones, unless the files only number theirs.

    Raises:
        UsageError: A part has a class that does not belong there, or only numbers, and not as many as published.
    """
    names = {}
    for split, part in parts.items():
        wanted, where = published[split], os.path.commonpath(part.files)
        foreign = [name for name in part.classes if name not in wanted]
        numbers = not any(WNID.fullmatch(name) for name in part.classes)
        if numbers and len(part.classes) != len(wanted):
            raise UsageError(
                f"dataset={dataset} wants {len(wanted)} classes for {split}, and {where} holds {len(part.classes)}: "
                "replace it, or type dataset.root=DIR of a complete copy"
            )
        if foreign and not numbers:
            raise UsageError(
                f"dataset={dataset} has no class '{foreign[0]}' in {split}, and {where} has it (and {len(foreign) - 1} "
                f"more that do not belong there, and {len(part.classes) - len(foreign)} that do): take them out, or "
                "type dataset.root=DIR of another copy"
            )
        names[split] = list(part.classes) if numbers else wanted
    return names
