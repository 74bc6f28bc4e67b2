"""Few-shot meta-learning experiments: any head, any normalization, any backbone, one command line."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metafew.inference import Model


def load(path: str | PathLike, trust: Sequence[str] = ()) -> Model:
    """Return the model of a checkpoint, to adapt to tasks of your own.

    It is the backbone and the head that were trained, with the weights of the checkpoint in float32, in eval mode and
    on the CPU; ``.to(device)`` moves it. The data set it was trained on is not needed::

        model = metafew.load("outputs/DATE/TIME/checkpoints/best.ckpt")
        task = model.adapt(images, ["cat", "dog", "cat"])
        task.label(others)  # ["dog", "cat", ...]
        task.predict(others)  # probabilities (q, 2)

    A file from elsewhere cannot run code: its content is data, and of the classes that it names only metafew's own are
    called, and those that you name.

    Args:
        path: a checkpoint that a run left in its folder ``checkpoints``.
        trust: dotted paths of other classes that it may call, such as the network of ``backbone=module``.

    Raises:
        metafew.errors.UsageError: there is no such checkpoint, or one that does not say how its model is made, or one
            that names a class that is not trusted.
    """
    from metafew import inference

    return inference.load(path, trust)
