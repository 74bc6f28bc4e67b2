"""The protocol of a file format: classes and their images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image


class Collection(Protocol):
    """Labelled images in files of one format.

    Attributes:
        files: the files that it reads.
        classes: the keys of the images of each class, by class name, in a fixed order.
        ignored: the numbers of files, folders, arrays and rows that are not read, by reason and place.
    """

    @property
    def files(self) -> Sequence[Path]: ...

    @property
    def classes(self) -> Mapping[str, Sequence[Any]]: ...

    @property
    def ignored(self) -> Mapping[str, int]: ...

    def open(self, keys: Sequence[Any]) -> Iterator[Image.Image | np.ndarray]:
        """Read the images of ``keys`` in order: PIL images of any size, or uint8 ``(h, w)`` or ``(h, w, 1 or 3)``.

        After it has raised UnreadableImages, the iterator continues with the next image, so that all can be listed at
        once.

        Raises:
            UnreadableImages: if an image is damaged.
            UsageError: if no image can be read.
        """
        ...


def fingerprint_files(files: Iterable[Path]) -> str:
    """Return a checksum of the resolved paths, sizes, and times of the last modification and change of files.

    Content is not read, which would take as long as building the store. Programs can set the first of the two times to
    any value, but not the second.
    """
    digest, folders = sha256(), dict[Path, str]()
    for file in files:
        if file.parent not in folders:
            folders[file.parent] = os.path.realpath(file.parent)
        stat = file.stat()
        digest.update(
            repr((folders[file.parent], file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)).encode()
        )
    return digest.hexdigest()
