"""The batch type: tasks of equal shape, stacked."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Transform(Protocol):
    """Random views of images, with parameters drawn beforehand."""

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the views of ``images`` ``(t, n, c, h, w)`` with ``parameters`` ``(t, n, k)``."""
        ...


class Labelled(NamedTuple):
    """Images and their labels.

    Attributes:
        images: ``(t, n, c, h, w)``; uint8 from the loader, floating point in [0, 1] in every step.
        labels: ``(t, n)`` int64 in ``0..way-1``.
    """

    images: Tensor
    labels: Tensor


class Views(NamedTuple):
    """Random views that are not yet applied to the images of an episode.

    Attributes:
        chain: applies them, ``chain.apply(images, parameters)``.
        support: parameters of the support rows, ``(t, s, k)``.
        query: parameters of the query rows, ``(t, q, k)``.
    """

    chain: Transform
    support: Tensor
    query: Tensor


class Episode(NamedTuple):
    """A stack of ``t`` tasks with the same way and the same numbers of support and query rows.

    A meta-batch, the input of one Lightning step, is a list of episodes: one if all its tasks have the same shape,
    several if way or shot is drawn for each task. Nothing is padded, so no statistic includes padding.

    Attributes:
        support: labelled examples given, ``(t, s, ...)``.
        query: examples to be labelled, ``(t, q, ...)``.
        way: number of classes of each task.
        index: ``(t,)`` the numbers of the tasks in their split.
        views: random views that are not yet applied, or None.
        source: number of the dataset from which all tasks are drawn, in a mixture of several.
        ids: numbers ``(t, s)`` and ``(t, q)`` int64 that identify support and query images in their split, so that
            their features may be cached; None for a part of an episode, and for images that belong to no split.
    """

    support: Labelled
    query: Labelled
    way: int
    index: Tensor  # type: ignore[assignment]  # of the task; tuple.index is not used
    views: Views | None = None
    source: int = 0
    ids: tuple[Tensor, Tensor] | None = None

    def split(self, size: int | None) -> list[Episode]:
        """Return episodes of ``size`` tasks each, or all tasks in one; views must have been applied."""
        if size is None:
            return [self]
        fields = (*self.support, *self.query, self.index)
        return [
            Episode(Labelled(*tensors[:2]), Labelled(*tensors[2:4]), self.way, tensors[4], source=self.source)
            for tensors in zip(*(field.split(size) for field in fields), strict=True)
        ]
