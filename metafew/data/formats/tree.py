"""Trees of image files: a folder of images for each class, or one folder and a list that names each image's class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from PIL import Image

from metafew.data.formats.images import decode
from metafew.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class Tree:
    """Image files below a folder, as a Collection whose keys are file names relative to that folder.

    Every folder below that holds images is a class, named by its own relative path, such as 'Greek/character01'.
    Links are followed. Images in the folder itself have no class, and what is hidden (see `hidden`) is ignored.

    Args:
        root: The folder.
        rows: File and class names, where folders do not tell the classes.

    Raises:
        UsageError: There is no such folder, a folder cannot be listed, or no class has an image.
    """

    def __init__(self, root: Path, rows: Iterable[tuple[str, str]] | None = None):
        if not root.is_dir():
            raise UsageError(f"images were expected in {root}, which is no folder: type the path of the right one")
        found: dict[str, list[str]] = {}
        for file, name in sorted(_scan(root) if rows is None else rows, key=itemgetter(1, 0)):
            found.setdefault(name, []).append(file)
        if not found:
            raise UsageError(
                f"{root} holds no folder of images ({', '.join(SUFFIXES)}): put the images of each class into a folder "
                f"of its own there, list them (dataset.labels=FILE.csv), or type the path of the right folder"
            )
        self.root = root
        self.classes = {name: tuple(files) for name, files in found.items()}
        self.files = [root / file for files in self.classes.values() for file in files]

    @classmethod
    def listed(cls, root: Path, rows: Iterable[tuple[str, str]]) -> Tree:
        """Return the images that `rows` lists by file name, relative to `root`, and class name.

        Raises:
            UsageError: A file is missing.
        """
        tree = cls(root, rows)
        missing = [file for file in tree.files if not file.is_file()]
        if missing:
            raise UsageError(
                f"{missing[0]} is missing, the first of {len(missing)} among {len(tree.files)} listed files: complete "
                f"{root}, or take them out of the list"
            )
        return tree

    def open(self, keys: Sequence[str]) -> Iterator[Image.Image]:
        """Decode the images of `keys`; a sentence names a file that is damaged."""
        return (decode(self.root / key, str(self.root / key)) for key in keys)


def hidden(name: str) -> bool:
    """Tell whether a file or folder is none of the user's: .DS_Store, ._image.png, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def _scan(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the image files in folders below `root` and the names of these folders, both relative to it."""
    for folder, below, files in os.walk(root, onerror=_refuse, followlinks=True):
        here = os.path.realpath(folder)
        # A link to a folder around it would be followed for ever.
        below[:] = [name for name in below if not hidden(name) and not _encloses(os.path.join(folder, name), here)]
        name = Path(folder).relative_to(root).as_posix()
        if name != ".":
            yield from ((f"{name}/{f}", name) for f in files if f.lower().endswith(SUFFIXES) and not hidden(f))


def _encloses(folder: str, path: str) -> bool:
    """Tell whether `path`, free of links, is or lies in `folder`."""
    real = os.path.realpath(folder)
    return path == real or path.startswith(os.path.join(real, ""))


def _refuse(error: OSError) -> None:
    raise UsageError(
        f"{error.filename} cannot be listed ({error.strerror}): make it readable, or move it elsewhere"
    ) from error
