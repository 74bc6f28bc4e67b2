"""Few-shot meta-learning experiments: any head, any normalization, any backbone, one command line."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metafew.inference import Model


def load(path: str | PathLike, trust: Sequence[str] = (), chosen: str | None = None) -> Model:
    """Load a trained model from a checkpoint, to adapt it to new tasks.

    The model consists of the trained backbone and head, with weights in float32, in eval mode and on the CPU;
    ``.to(device)`` moves it. The training dataset is not needed::

        model = metafew.load("outputs/DATE/TIME/checkpoints/best.ckpt")
        task = model.adapt(images, ["cat", "dog", "cat"])
        task.label(others)  # ["dog", "cat", ...]
        task.predict(others)  # probabilities (q, 2)

    A checkpoint cannot run arbitrary code: only tensors and plain values are read from it, and only metafew's own
    classes and those in ``trust`` are called.

    Args:
        path: a checkpoint from the folder ``checkpoints`` of a run.
        trust: dotted paths of further classes that may be called, such as the network of ``backbone=module``.
        chosen: which option of a head with several is used, such as ``lr0.5_steps10``; None for the first.

    Raises:
        metafew.errors.UsageError: if there is no such checkpoint, if it does not describe its model, if it names a
            class that is not trusted, or if the head has no option ``chosen``.
    """
    from metafew import inference

    return inference.load(path, trust, chosen)
