"""CUB-200-2011 (Wah et al. 2011): 11,788 photographs of 200 species of birds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from metafew.config.option_values import check_choice, option_path
from metafew.data.download import Remote, obtain
from metafew.data.formats.archives import unpack
from metafew.data.formats.collection import Collection
from metafew.data.formats.damage import explain_damage
from metafew.data.formats.tree import Tree
from metafew.data.sources.collected import Collected
from metafew.data.sources.source import shipped_split
from metafew.errors import UsageError

FOLDER, LISTS = "CUB_200_2011", ("images.txt", "image_class_labels.txt", "classes.txt")
ARCHIVE = Remote(
    "CUB_200_2011.tgz",
    ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
    "md5:97eceeb196236b17998738112f37df78",
)
LIMIT = 4 * 2**30  # size limit of the unpacked archive, in bytes


class CUB(Collected):
    """Bird species, from the authors' CUB_200_2011/ or CUB_200_2011.tgz, which is unpacked into the same folder.

    Args:
        root: the folder that contains either, or the unpacked folder itself.
        split: ``hilliard`` (Hilliard et al. 2018): in order, every second species for training, and the others
            alternately for validation and testing, 100, 50 and 50. ``meta_dataset`` (Triantafillou et al. 2020): 140,
            30 and 30.
        boxes: whether images are cropped to the birds' bounding boxes.
        image_size: height and width of the stored images, in pixels.
        download: whether a missing archive is downloaded into ``root``.

    Raises:
        UsageError: if the split is neither of the two, or ``boxes`` is not true or false.
    """

    name = "cub"
    published_images = 11_788

    def __init__(self, root: str, split: str, boxes: bool, image_size: int, download: bool):
        super().__init__(channels=3, image_size=image_size, fit="crop")
        published = shipped_split(self.name)
        check_choice("dataset.split", split, list(published))
        check_choice("dataset.boxes", boxes, (True, False))
        self.root, self.boxes, self.download = option_path("dataset.root", root), boxes, download
        self._split = published[split]

    def find(self) -> tuple[list[Collection], Mapping[str, Sequence[str]]]:
        """Return the listed images, and the species of each split."""
        folder = self._folder()
        images, labels, names = (read_table(folder / name) for name in LISTS)
        try:
            rows = [(image, names[labels[number]]) for number, image in images.items()]
        except KeyError as error:
            raise UsageError(
                f"expected {', '.join(LISTS)} in {folder} to give every image a species, but number {error} is "
                "missing: replace them with the authors'"
            ) from error
        tree = Tree(folder / "images", rows)
        return [CroppedTree(tree, folder / "bounding_boxes.txt", images) if self.boxes else tree], self._split

    def _folder(self) -> Path:
        """Return the folder of the authors' lists, after downloading and unpacking it if necessary."""
        # The archive contains such a folder, and is unpacked into one with the same name.
        candidates = [self.root, self.root / FOLDER, self.root / FOLDER / FOLDER]
        for folder in candidates:
            if all((folder / name).is_file() for name in LISTS):
                return folder
        if (self.root / FOLDER).exists():
            raise UsageError(
                f"expected {', '.join(LISTS)} of the authors in {self.root / FOLDER}, got a folder without them: add "
                "them, or remove it, and the archive is unpacked again"
            )
        archive = obtain(self.root, ARCHIVE, self.download, self.name)
        unpack(archive, self.root / FOLDER, LIMIT)
        if not all((candidates[-1] / name).is_file() for name in LISTS):
            raise UsageError(
                f"expected {archive} to contain {FOLDER}/{LISTS[0]}, but it does not: replace it with the authors', "
                f"and remove {self.root / FOLDER}"
            )
        return candidates[-1]


class CroppedTree:
    """The images of a tree, each cropped to a bounding box.

    Args:
        tree: the images.
        file: the authors' list of boxes: image number, left, top, width and height in pixels.
        images: the key of each image, by number.

    Raises:
        UsageError: if an image has no box of four numbers.
    """

    def __init__(self, tree: Tree, file: Path, images: Mapping[str, str]):
        self.tree, self.classes, self.ignored = tree, tree.classes, tree.ignored
        self.files = [*tree.files, file]
        advice = "replace it with the authors', or type dataset.boxes=false"
        with explain_damage(file, "a box of four numbers for each image", KeyError, ValueError, advice=advice):
            boxes = {images[number]: [float(x) for x in box.split()] for number, box in read_table(file).items()}
            self.boxes = {key: (x, y, x + w, y + h) for key, (x, y, w, h) in boxes.items()}
            if missing := {key for keys in self.classes.values() for key in keys} - boxes.keys():
                raise ValueError(f"none of {min(missing)}")

    def open(self, keys: Sequence[str]) -> Iterator[Image.Image]:
        """Read the images of ``keys``, in order, cropped to the intersections with their boxes."""
        return map(self._crop, keys, self.tree.open(keys))

    def _crop(self, key: str, image: Image.Image) -> Image.Image:
        left, top, right, bottom = np.rint(np.array(self.boxes[key]).clip(0, image.size * 2)).astype(int).tolist()
        if right <= left or bottom <= top:
            raise UsageError(
                f"expected the box of {key} in {self.files[-1]} to lie within the image of {image.width} x "
                f"{image.height} pixels, got {self.boxes[key]}: replace the list with the authors'"
            )
        return image.crop((left, top, right, bottom))


def read_table(file: Path) -> dict[str, str]:
    """Return the text after the number at the start of each line of a file."""
    with explain_damage(
        file, "lines of a number and a text", OSError, ValueError, advice="replace it with the authors'"
    ):
        lines = file.read_text(encoding="utf-8").splitlines()
        return {number: rest for number, rest in (line.split(maxsplit=1) for line in lines if line.strip())}
