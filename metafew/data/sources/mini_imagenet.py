"""mini-ImageNet (Vinyals et al. 2016; split of Ravi & Larochelle 2017): 100 ImageNet classes of 600 images."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from metafew.data.formats.arrays import Arrays, read_npz, read_pickle
from metafew.data.formats.collection import Collection
from metafew.data.formats.damage import explain_damage
from metafew.data.formats.parquet import Parquet
from metafew.data.formats.tree import Tree
from metafew.data.sources.imagenet import WNID, ImageNetSubset, class_folders, name_labels, split_folders, subfolders
from metafew.data.sources.source import SPLITS, shipped_split
from metafew.errors import UsageError

ALL_SPLITS = "train, val and test"
"""The key of a collection of all splits, which can only be divided by WordNet ids."""
FILES = (
    [f"mini-imagenet-cache-{split}.pkl" for split in SPLITS],
    [f"mini-imagenet-cache-{split}.pkl" for split in ("train", "validation", "test")],
    [f"miniImageNet_category_split_{split}.pickle" for split in ("train_phase_train", "val", "test")],
    [f"mini-imagenet-{split}.npz" for split in SPLITS],
    [f"mini_imagenet_{split}.npz" for split in SPLITS],
    [f"{split}.npz" for split in SPLITS],
)
"""The files of the three splits, under names used by several authors."""


class MiniImageNet(ImageNetSubset):
    """mini-ImageNet in any of its distributed forms.

    Files with WordNet ids are checked against the split of Ravi & Larochelle; files with numbered classes define their
    own split, with classes such as ``train/00``. Parquet files should contain the 600 images per class of the
    benchmark; timm/mini-imagenet on the Hugging Face hub has the same classes, but 650 images per class.

    Args:
        root: the folder of the files: class folders named by WordNet id, in ``root`` or one level below; train.csv,
            val.csv and test.csv with a folder of images; pickles or .npz files of the three splits; or parquet files.
        image_size: height and width of the stored images, in pixels.
    """

    name = "mini_imagenet"
    published_images = 60_000

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the collections in the first form found, and the class names of each split."""
        published, root = shipped_split(self.name), self.root
        collections: Mapping[str, Collection] | None = (
            split_folders(root)
            or _undivided_folders(root)
            or _csv_lists(root)
            or _array_files(root)
            or _parquet_files(root)
        )
        if not collections:
            lacking = [[name for name in names if not (root / name).is_file()] for names in FILES]
            if fewest := min(filter(lambda names: len(names) < len(SPLITS), lacking), key=len, default=[]):
                missing = " and ".join(fewest)
                raise UsageError(
                    f"dataset={self.name} needs images in {root}, which holds a part of them, without {missing}: put "
                    "these there, too, or type dataset.root=DIR"
                )
            raise UsageError(
                f"dataset={self.name} needs images in {root}, which holds none, and ImageNet's terms forbid "
                "downloading them: put there class folders named by WordNet id (n01532829/, images/n01532829/ or "
                "train/n01532829/), or images/ with train.csv, val.csv and test.csv (filename,label), or the three "
                f"files of {', '.join(names[0] for names in FILES)}, or *.parquet, or type dataset.root=DIR"
            )
        everything = {ALL_SPLITS: [name for names in published.values() for name in names]}
        names = self.match_published(collections, published | everything)
        return list(collections.values()), published if ALL_SPLITS in collections else names


def _undivided_folders(root: Path) -> dict[str, Tree] | None:
    """Return the class folders of all splits, from a folder or from its first subfolder with class folders."""
    found = next(filter(None, map(class_folders, [root, *subfolders(root)])), None)
    return {ALL_SPLITS: found} if found else None


def _csv_lists(root: Path) -> dict[str, Tree] | None:
    """Return the images listed in three .csv files, in images/ or in ``root`` itself."""
    if not all((root / f"{split}.csv").is_file() for split in SPLITS):
        return None
    folder = root / "images" if (root / "images").is_dir() else root
    return {split: Tree(folder, _read_list(root / f"{split}.csv")) for split in SPLITS}


def _read_list(file: Path) -> list[tuple[str, str]]:
    """Return the file name and the class of each image listed in a .csv file."""
    with explain_damage(file, "text with the columns filename and label", KeyError, ValueError, OSError, csv.Error):
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = [(row["filename"], row["label"]) for row in csv.DictReader(lines)]
        if not rows or not all(map(all, rows)):
            raise ValueError("it has no lines, or one that lacks either")
        if len({*rows}) < len(rows):
            raise ValueError("it lists an image twice")
        return rows


def _array_files(root: Path) -> dict[str, Arrays] | None:
    """Return the arrays of each split, in separate files."""
    for names in FILES:
        if all((root / name).is_file() for name in names):
            return {split: _read_arrays(root / name, split) for split, name in zip(SPLITS, names, strict=True)}
    return None


def _read_arrays(file: Path, split: str) -> Arrays:
    """Return the images of one split in a pickle or an .npz file."""
    images, labels, words, ignored = (read_npz if file.suffix == ".npz" else read_pickle)(file)
    names = {label: word if WNID.fullmatch(word) else f"{split}/{word}" for label, word in (words or {}).items()}
    return Arrays(images, labels, names or name_labels(labels, split), [file], ignored)


def _parquet_files(root: Path) -> dict[str, Parquet] | None:
    """Return the images of all parquet files below a folder."""
    files = sorted(root.rglob("*.parquet"))
    return {ALL_SPLITS: Parquet(files)} if files else None
