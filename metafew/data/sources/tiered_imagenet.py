"""tieredImageNet (Ren et al. 2018): 608 ImageNet classes of 34 super-categories, each of them in one split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from metafew.data.formats.arrays import Arrays, ImageSequence, find_name, npz_images, read_dictionary
from metafew.data.formats.collection import Collection
from metafew.data.formats.damage import explain_damage
from metafew.data.formats.labels import class_labels
from metafew.data.formats.pickles import unpickle
from metafew.data.sources.imagenet import WNID, ImageNetSubset, class_folders, name_labels, split_folders
from metafew.data.sources.source import SPLITS, shipped_split
from metafew.errors import UsageError


class TieredImageNet(ImageNetSubset):
    """tieredImageNet in its authors' distribution, or selected from ImageNet.

    Files with WordNet ids are checked against the authors' split; files with numbered classes define their own split,
    with classes such as ``train/007``.

    Args:
        root: the folder of the files: the authors' {train,val,test}_images_png.pkl or _images.npz, with _labels.pkl;
            class folders named by WordNet id in train/, val/ and test/; or ImageNet's 1,000 class folders.
        image_size: height and width of the stored images, in pixels.
    """

    name = "tiered_imagenet"
    published_images = 779_165

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the collections in the first form found, and the class names of each split."""
        tiers = shipped_split(self.name)
        published = {split: [wnid for wnids in found.values() for wnid in wnids] for split, found in tiers.items()}
        collections = self._files("_images_png.pkl") or self._files("_images.npz") or split_folders(self.root)
        if collections:
            return list(collections.values()), self.match_published(collections, published)
        if imagenet := class_folders(self.root):
            return [imagenet], published
        raise UsageError(
            f"dataset={self.name} needs images in {self.root}, which holds none, and ImageNet's terms forbid "
            "downloading them: put there {train,val,test}_images_png.pkl or {train,val,test}_images.npz with "
            "{train,val,test}_labels.pkl, or the class folders {train,val,test}/n01530575/ and so on, or ImageNet's "
            "class folders n01440764/ and so on, or type dataset.root=DIR"
        )

    def _files(self, suffix: str) -> dict[str, Arrays] | None:
        """Return the authors' arrays of each split, if all files exist."""
        files = {split: (self.root / f"{split}{suffix}", self.root / f"{split}_labels.pkl") for split in SPLITS}
        if not all(file.is_file() for pair in files.values() for file in pair):
            return None
        return {split: _read_split(*pair, split) for split, pair in files.items()}


def _read_split(images: Path, labels_file: Path, split: str) -> Arrays:
    """Return the images of one split, in classes such as ``train/004 hen``."""
    content = read_dictionary(labels_file)
    with explain_damage(labels_file, "labels with class names", IndexError, KeyError, TypeError, ValueError):
        labels = class_labels(content[find_name(content, ("label_specific", "labels"))], f"the labels of {labels_file}")
        names = name_labels(labels, split)
        if (words := content.get("label_specific_str")) is not None:
            names = {n: words[n] if WNID.fullmatch(words[n]) else f"{name} {words[n]}" for n, name in names.items()}
    return Arrays(_image_loader(images), labels, names, [images, labels_file])


def _image_loader(file: Path) -> Callable[[], ImageSequence]:
    """Return a function that loads the images of a split, in RGB."""
    if file.suffix == ".npz":
        images = npz_images(file)
        return lambda: images()[..., ::-1]  # written by OpenCV, in BGR

    def load() -> ImageSequence:
        content = unpickle(file)
        if not isinstance(content, list | tuple | np.ndarray):
            raise UsageError(f"expected {file} to hold a list of images, got a {type(content).__name__}: replace it")
        return content

    return load
