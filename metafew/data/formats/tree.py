"""Read folders of image files: one folder for each class, or any folder with a list of files and their classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NoReturn

from PIL import Image

from metafew.data.formats.images import decode
from metafew.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".bmp", ".webp", ".gif", ".tif", ".tiff")


class Tree:
    """Image files below a folder; their keys are paths relative to it.

    Every folder below ``root`` that directly contains images is a class, named by its relative path, such as
    ``Greek/character01``. Links are followed. Images in ``root`` itself and :func:`hidden` files are ignored.

    Args:
        root: the folder.
        rows: pairs of relative file path and class name; None takes the class from the folder.

    Raises:
        UsageError: if there is no such folder, it cannot be listed, it has no images of a class, or a file is missing.
    """

    def __init__(self, root: Path, rows: Iterable[tuple[str, str]] | None = None):
        if not root.is_dir():
            raise UsageError(f"expected a folder of images, but {root} is not a folder: type the path of one")
        found: dict[str, list[str]] = {}
        for file, name in sorted(_scan(root) if rows is None else rows, key=itemgetter(1, 0)):
            found.setdefault(name, []).append(file)
        if not found:
            raise UsageError(
                f"expected a folder of images for each class in {root}, which holds no folder of images "
                f"({', '.join(SUFFIXES)}): move the images of each class into a folder, list them "
                "(type dataset.labels=FILE.csv), or type the path of another folder"
            )
        self.root = root
        self.classes = {name: tuple(files) for name, files in found.items()}
        self.files = [root / file for files in self.classes.values() for file in files]
        missing = [] if rows is None else [file for file in self.files if not file.is_file()]
        if missing:
            raise UsageError(
                f"expected {len(self.files)} listed files, but {missing[0]} is missing, the first of {len(missing)}: "
                f"complete {root}, or remove them from the list"
            )

    def open(self, keys: Sequence[str]) -> Iterator[Image.Image]:
        """Decode the images of ``keys``; raises UnreadableImages for each damaged file."""
        return map(lambda key: decode(self.root / key, str(self.root / key)), keys)


def hidden(name: str) -> bool:
    """Return whether a file or folder is hidden or created by the system, such as .DS_Store or __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def _scan(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the image files in folders below ``root`` and the names of these folders, both relative to it."""
    for folder, below, files in os.walk(root, onerror=raise_unreadable, followlinks=True):
        # Following a link to a folder that contains it would never end.
        below[:] = [name for name in below if not hidden(name) and not _encloses(os.path.join(folder, name), folder)]
        name = Path(folder).relative_to(root).as_posix()
        if name != ".":
            yield from ((f"{name}/{f}", name) for f in files if f.lower().endswith(SUFFIXES) and not hidden(f))


def _encloses(folder: str, path: str) -> bool:
    """Return whether ``path`` is ``folder`` or lies in it, with links resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def raise_unreadable(error: OSError) -> NoReturn:
    """Raise the UsageError for a folder that cannot be listed."""
    raise UsageError(
        f"{error.filename} cannot be listed ({error.strerror}): make it readable, or move it elsewhere"
    ) from error
