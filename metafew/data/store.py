"""Images on disk: one memory-mapped uint8 array a split, and an index of its classes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from filelock import FileLock
from rich.progress import track

from metafew.data.sources import Source

FORMAT = 1


def locate(source: Source, cache: Path) -> Path:
    """Return the folder of the store of ``source``; its name changes with the source's files and settings."""
    key = sha256(f"{FORMAT} {source.fingerprint()}".encode()).hexdigest()[:16]
    return cache / f"{source.name}-{key}"


def build(source: Source, cache: Path) -> Path:
    """Build the store of ``source`` below ``cache`` unless it is there, and return its folder.

    Images are written to a temporary folder, which is renamed when complete: a killed build leaves nothing under the
    final name. Processes that start together wait for the first.
    """
    path = locate(source, cache)
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            for left_over in cache.glob(f"{path.name}.*/"):
                shutil.rmtree(left_over, ignore_errors=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f"{path.name}.", dir=cache))
            try:
                for split, categories in source.splits().items():
                    _write(unfinished, split, categories, source)
                unfinished.chmod(0o755)  # others may share the cache
                os.replace(unfinished, path)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return path


def _write(folder: Path, split: str, categories: Sequence, source: Source) -> None:
    """Write the array and the index of one split."""
    rows = {key: row for row, key in enumerate(dict.fromkeys(key for c in categories for key in c.keys))}
    shape = (len(rows), source.channels, source.image_size, source.image_size)
    images = np.lib.format.open_memmap(folder / f"{split}.npy", mode="w+", dtype=np.uint8, shape=shape)
    reading = track(source.read(list(rows)), f"{source.name}: {split} images", total=len(rows), transient=True)
    for row, image in enumerate(reading):
        images[row] = image
    images.flush()
    index = [{"name": c.name, "rows": [rows[key] for key in c.keys], "turns": c.turns} for c in categories]
    digest = sha256(images).hexdigest()
    (folder / f"{split}.json").write_text(json.dumps({"sha256": digest, "classes": index}))


class Split:
    """The images of one split, read on demand.

    Args:
        folder: a store.
        split: ``train``, ``val`` or ``test``.

    Attributes:
        names: class names.
        rows: for each class the rows of its images.
        turns: for each class the quarter turns to apply to its images.
    """

    def __init__(self, folder: Path, split: str):
        classes = json.loads((folder / f"{split}.json").read_text())["classes"]
        self.images = np.load(folder / f"{split}.npy", mmap_mode="r")
        self.names = [c["name"] for c in classes]
        self.rows = [np.asarray(c["rows"]) for c in classes]
        self.turns = np.asarray([c["turns"] for c in classes])

    def gather(self, rows: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """Return images ``(n, c, h, w)``, uint8, each turned counter-clockwise by its number of quarter turns."""
        images = self.images[rows]
        for turn in np.unique(turns[turns > 0]):
            images[turns == turn] = np.rot90(images[turns == turn], turn, axes=(2, 3))
        return images
