"""tieredImageNet (Ren et al., 2018): 608 ImageNet classes of 34 super-categories, none of them in two splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metafew.data.formats import Collection
from metafew.data.formats.arrays import Arrays, choose, dictionary, images_of, one_dimensional
from metafew.data.formats.pickles import unpickle
from metafew.data.sources import SPLITS, shipped_split
from metafew.data.sources.collected import Collected
from metafew.data.sources.mini_imagenet import WNID, checked, class_folders, numbered, split_folders
from metafew.errors import UsageError


class TieredImageNet(Collected):
    """tieredImageNet in its authors' form, or out of ImageNet itself; ImageNet's terms allow no download.

    Files that hold WordNet ids are checked against the authors' split; files that hold only numbers are their own
    split, with classes such as 'train/007'.

    Args:
        root: The folder of the files: the authors' {train,val,test}_images_png.pkl or _images.npz, with _labels.pkl;
            class folders named by WordNet id in train/, val/ and test/; or ImageNet's 1,000 class folders.
        image_size: Height and width of the stored images, in pixels.
    """

    name = "tiered_imagenet"

    def __init__(self, root: str, image_size: int):
        super().__init__(channels=3, image_size=image_size, fit="stretch")
        self.root = Path(root)

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the collections of the first form that is there, and the names of the classes of each split."""
        tiers = shipped_split(self.name)
        published = {split: [wnid for wnids in found.values() for wnid in wnids] for split, found in tiers.items()}
        parts = self._files("_images_png.pkl") or self._files("_images.npz") or split_folders(self.root)
        if parts:
            return list(parts.values()), checked(self.name, parts, published)
        if whole := class_folders(self.root):
            return [whole], published
        raise UsageError(
            f"dataset={self.name} needs images in {self.root}, which holds none, and ImageNet's terms forbid fetching "
            "them: put there {train,val,test}_images_png.pkl or {train,val,test}_images.npz with "
            "{train,val,test}_labels.pkl, or the class folders {train,val,test}/n01530575/ and so on, or ImageNet's "
            "class folders n01440764/ and so on, or type dataset.root=DIR"
        )

    def _files(self, suffix: str) -> dict[str, Collection] | None:
        """Return the authors' arrays of each split."""
        files = {split: (self.root / f"{split}{suffix}", self.root / f"{split}_labels.pkl") for split in SPLITS}
        if not all(file.is_file() for pair in files.values() for file in pair):
            return None
        return {split: self._arrays(*pair, split) for split, pair in files.items()}

    def _arrays(self, images: Path, labelled: Path, split: str) -> Arrays:
        """Return the images of one split."""
        content = dictionary(labelled, str(labelled))
        key = choose(content, ("label_specific", "labels"), "labels", labelled)
        try:
            labels = one_dimensional(np.asarray(content[key]), labelled)
            names = named(labels, split, content.get("label_specific_str"))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{labelled} should name the class of every label and does not "
                f"({type(error).__name__}: {error}): replace it"
            ) from error
        return Arrays(reader(images), labels, names, [images, labelled])


def named(labels: np.ndarray, split: str, words: Sequence[str] | None) -> dict[Any, str]:
    """Return class names such as 'train/004 hen' for labels; WordNet ids stay."""
    names = numbered(labels, split)
    if words is None:
        return names
    return {n: words[n] if WNID.fullmatch(words[n]) else f"{name} {words[n]}" for n, name in names.items()}


def reader(file: Path) -> Any:
    """Return what loads the images of a split, in RGB."""
    if file.suffix == ".npz":
        images = images_of(file)
        return lambda: images()[..., ::-1]  # OpenCV wrote them, blue first

    def encoded() -> Sequence[Any]:
        content = unpickle(file)
        if not isinstance(content, list | tuple | np.ndarray):
            raise UsageError(f"{file} should hold a list of images and holds a {type(content).__name__}: replace it")
        return content

    return encoded
