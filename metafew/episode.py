"""The one batch type: tasks of equal shape, stacked."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Transform(Protocol):
    """Random views of images, whose parameters were drawn before."""

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return ``images`` ``(t, n, c, h, w)`` as their parameters ``(t, n, k)`` show them."""
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
    """How the images of an episode are to be seen.

    Attributes:
        chain: shows images, ``chain.apply(images, parameters)``.
        support: parameters of the support rows, ``(t, s, k)``.
        query: parameters of the query rows, ``(t, q, k)``.
    """

    chain: Transform
    support: Tensor
    query: Tensor


class Episode(NamedTuple):
    """A stack of ``t`` tasks that share their way and their numbers of support and query rows.

    A meta-batch, the input of one Lightning step, is a list of episodes: one when all its tasks have the same
    shape, several when way or shot is drawn per task. Nothing is ever padded, so that no statistic can see a
    row which is not there.

    Attributes:
        support: labelled examples given, ``(t, s, ...)``.
        query: examples to be labelled, ``(t, q, ...)``.
        way: number of classes of each task.
        index: ``(t,)`` the numbers of the tasks in their split.
        views: random views that the images have yet to be seen through, or None.
        source: the number of the dataset that all tasks come from, in a mixture of several.
        ids: which images of their split support and query rows are, ``(t, s)`` and ``(t, q)`` int64, so that what is
            known of an image need not be computed anew; None for pieces of an episode, and images of no split.
    """

    support: Labelled
    query: Labelled
    way: int
    index: Tensor
    views: Views | None = None
    source: int = 0
    ids: tuple[Tensor, Tensor] | None = None

    def split(self, size: int | None) -> list[Episode]:
        """Return episodes of ``size`` tasks each, or all tasks in one, their views applied."""
        if size is None:
            return [self]
        supports, queries = (
            [Labelled(*parts) for parts in zip(*(p.split(size) for p in part), strict=True)]
            for part in (self.support, self.query)
        )
        return [
            Episode(support, query, self.way, index, source=self.source)
            for support, query, index in zip(supports, queries, self.index.split(size), strict=True)
        ]
