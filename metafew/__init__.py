"""Few-shot meta-learning experiments: any head, any normalization, any backbone, one command line."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metafew.library import Model


def load(path: str | PathLike) -> Model:
    """Return the model of a checkpoint, to adapt to tasks of your own.

    It is the backbone and the head that were trained, with the weights of the checkpoint in float32, in eval mode and
    on the CPU; ``.to(device)`` moves it. The data set it was trained on is not needed::

        model = metafew.load("outputs/DATE/TIME/checkpoints/best.ckpt")
        task = model.adapt(images, ["cat", "dog", "cat"])
        task.label(others)  # ["dog", "cat", ...]
        task.predict(others)  # probabilities (q, 2)

    Content of the file is never executed, but the classes that its configuration names are called, as they were in
    training: load what you trust.

    Args:
        path: a checkpoint that a run left in its folder ``checkpoints``.

    Raises:
        metafew.errors.UsageError: there is no such checkpoint, or one that does not say how its model is made.
    """
    from metafew import library  # imports torch, which takes seconds

    return library.load(path)
