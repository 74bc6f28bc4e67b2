"""Formats: images of classes, in files as others write them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


class Collection(Protocol):
    """Images of classes in files of one format.

    Attributes:
        files: The files that it reads.
        classes: The names of its classes and the keys of their images, both in a fixed order.
    """

    files: Sequence[Path]
    classes: dict[str, tuple[Hashable, ...]]

    def open(self, keys: Sequence[Hashable]) -> Iterator[Image.Image | np.ndarray]:
        """Read the images of `keys`, in their order, of whatever size: as decoded, or uint8 (h, w) or (h, w, 1 or 3).

        Raises:
            UsageError: A file is damaged.
        """


def stamp(files: Iterable[Path]) -> str:
    """Return a checksum of the names, sizes and times of change of files.

    Their content is left out: reading it takes as long as building the store.
    """
    digest = sha256()
    for file in files:
        stat = file.stat()
        digest.update(repr((file.parts[-2:], stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()
