"""Draw tasks from arrays in memory instead of a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metafew.data.sources import Category
from metafew.data.store import Split


class ArraySplit(Split):
    """Images that are already in memory, in place of a split of a store.

    Args:
        images: ``(n, c, h, w)``.
        categories: their classes, with rows of ``images`` as keys.
    """

    def __init__(self, images: np.ndarray, categories: Sequence[Category]):
        self.hold(images, None, categories)
