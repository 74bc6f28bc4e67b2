"""Find test datasets of a mixture that share images with a training dataset."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from metafew.data.duplicates import hash_image
from metafew.data.sources import SPLITS, Source
from metafew.data.store import luma


def stored_hashes(source: Source, folder: Path, split: str, channels: int) -> np.ndarray:
    """Return the hashes, uint64, of the images of a store, converted to at most a given number of channels."""
    if source.channels == channels:
        return np.load(folder / f"{split}.hashes.npy")
    images = np.load(folder / f"{split}.npy", mmap_mode="r")
    return np.array([hash_image(luma(np.asarray(image)).tobytes()) for image in images], np.uint64)


def shared_images(source: Source, folders: Mapping[Source, Path]) -> dict[str, dict]:
    """Return the test datasets of a mixture that share images with a training dataset.

    Images are compared as stored, except that colour images are converted to grey for comparison with grey images.

    Returns:
        By title of a test dataset: the title of the ``source`` that contains most of its test images, and the shares of
        its test images that are in any split of that dataset (``share``) and in its training split (``trained``).
    """

    @cache  # each dataset is compared with every other
    def hashes(one: Source, split: str, channels: int) -> np.ndarray:
        return stored_hashes(one, folders[one], split, channels)

    shared: dict[str, dict] = {}
    for each in source.components("test"):
        for other in source.components("train"):
            if other is each:
                continue
            channels = min(each.channels, other.channels)
            own = hashes(each, "test", channels)
            found = {split: hashes(other, split, channels) for split in SPLITS}
            share = share_of(own, np.concatenate(list(found.values())))
            if share > (shared[each.title]["share"] if each.title in shared else 0):
                trained = share_of(own, found["train"])
                shared[each.title] = {"source": other.title, "share": share, "trained": trained}
    return shared


def share_of(hashes: np.ndarray, others: np.ndarray) -> float:
    """Return the share of ``hashes`` contained in ``others``; 0 if there are none."""
    return float(np.isin(hashes, others).mean()) if len(hashes) else 0.0
