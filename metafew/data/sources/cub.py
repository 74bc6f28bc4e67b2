"""CUB-200-2011 (Wah et al., 2011): 11,788 photographs of 200 species of birds."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metafew.data.download import Remote, obtain
from metafew.data.formats import Collection
from metafew.data.formats.archives import unpack
from metafew.data.formats.tree import Tree
from metafew.data.sources import shipped_split
from metafew.data.sources.collected import Collected
from metafew.errors import UsageError

FOLDER, LISTS = "CUB_200_2011", ("images.txt", "image_class_labels.txt", "classes.txt")
ARCHIVE = Remote(
    "CUB_200_2011.tgz",
    ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
    "md5:97eceeb196236b17998738112f37df78",
)
LIMIT = 4 * 2**30  # bytes, unpacked


class CUB(Collected):
    """Birds as the authors distribute them, in CUB_200_2011/ or in CUB_200_2011.tgz, which is unpacked beside itself.

    Args:
        root: The folder that holds either, or the unpacked folder itself.
        split: 'hilliard' (Hilliard et al., 2018): of the species in order, every second trains, and the others
            validate and test in turn: 100, 50 and 50. 'meta_dataset' (Triantafillou et al., 2020): 140, 30 and 30.
        boxes: Whether images are cut to the birds' bounding boxes.
        image_size: Height and width of the stored images, in pixels.
        download: Whether a missing archive is fetched into `root`.

    Raises:
        UsageError: The split is neither of the two, or `boxes` is not true or false.
    """

    name = "cub"

    def __init__(self, root: str, split: str, boxes: bool, image_size: int, download: bool):
        super().__init__(channels=3, image_size=image_size, fit="crop")
        known = shipped_split(self.name)
        if split not in known:
            raise UsageError(f"dataset.split={split} is no split of cub: type {' or '.join(known)}")
        if not isinstance(boxes, bool):
            raise UsageError(f"dataset.boxes is true or false, not {boxes}: type dataset.boxes=true")
        self.root, self.boxes, self.download = Path(root), boxes, download
        self._split = known[split]

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the listed images, and the species of each split."""
        folder = self._folder()
        images, labels, names = (table(folder / name) for name in LISTS)
        try:
            rows = [(image, names[labels[number]]) for number, image in images.items()]
        except KeyError as error:
            raise UsageError(
                f"{LISTS[0]}, {LISTS[1]} and {LISTS[2]} in {folder} should give every image a species, and number "
                f"{error} is missing: replace them with the authors'"
            ) from error
        tree = Tree.listed(folder / "images", rows)
        return [Boxed(tree, folder / "bounding_boxes.txt", images) if self.boxes else tree], self._split

    def _folder(self) -> Path:
        """Return the folder of the authors' lists, fetched and unpacked first if need be."""
        # The archive has the folder within, and is unpacked into one of the same name.
        places = [self.root, self.root / FOLDER, self.root / FOLDER / FOLDER]
        for folder in places:
            if all((folder / name).is_file() for name in LISTS):
                return folder
        archive = obtain(self.root, ARCHIVE, self.download, self.name)
        if not os.access(self.root, os.W_OK):
            raise UsageError(
                f"{archive} must be unpacked, and {self.root} cannot be written: unpack it elsewhere, and type "
                "dataset.root=DIR of the folder that then holds CUB_200_2011"
            )
        unpack(archive, self.root / FOLDER, LIMIT)
        if not all((places[-1] / name).is_file() for name in LISTS):
            raise UsageError(
                f"{archive} should hold {FOLDER}/{LISTS[0]} and does not: replace it with the authors', and remove "
                f"{self.root / FOLDER}"
            )
        return places[-1]


class Boxed:
    """The images of a tree, each cut to a box.

    Args:
        tree: The images.
        file: The authors' list of boxes: number of the image, left, top, width and height in pixels.
        images: The key of each number.
    """

    def __init__(self, tree: Tree, file: Path, images: Mapping[str, str]):
        self.tree, self.classes, self.files = tree, tree.classes, [*tree.files, file]
        try:
            boxes = {images[number]: [float(x) for x in box.split()] for number, box in table(file).items()}
            self.boxes = {key: (x, y, x + w, y + h) for key, (x, y, w, h) in boxes.items()}
            problem = next((f"none of {key}" for keys in self.classes.values() for key in keys if key not in boxes), "")
        except (KeyError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise UsageError(
                f"{file} should give each image a box of four numbers and does not ({problem}): replace it with the "
                "authors', or type dataset.boxes=false"
            )

    def open(self, keys: Sequence[Hashable]) -> Iterator[Image.Image]:
        """Read the images of `keys`, in their order, cut to the part of their boxes that lies within them."""
        for key, image in zip(keys, self.tree.open(keys), strict=True):
            left, top, right, bottom = np.rint(np.clip(self.boxes[key], 0, image.size * 2)).astype(int).tolist()
            if right <= left or bottom <= top:
                raise UsageError(
                    f"the box of {key} in {self.files[-1]} should lie within the image of {image.width} x "
                    f"{image.height} pixels and is {self.boxes[key]}: replace the list with the authors'"
                )
            yield image.crop((left, top, right, bottom))


def table(file: Path) -> dict[str, str]:
    """Return what follows the number at the start of each line of a text file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return {number: rest for number, rest in (line.split(maxsplit=1) for line in lines if line.strip())}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{file} should be lines of a number and a text and cannot be read as that ({error}): replace it with the "
            "authors'"
        ) from error
