"""The batch type: tasks of equal shape, stacked."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Transform(Protocol):
    """A random transformation of images, whose parameters have already been drawn."""

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
    """Random views that have not been applied to the images of an episode yet.

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

    A meta-batch, the input of one Lightning step, is a list of episodes: one if all tasks have the same shape, several
    if way or shot is drawn per task. Nothing is padded, so no statistic includes padding.

    Attributes:
        support: the labelled examples, ``(t, s, ...)``.
        query: the examples to label, with their true labels, ``(t, q, ...)``.
        way: number of classes per task.
        index: ``(t,)`` indices of the tasks in their split, kept on the CPU, where they are used.
        views: random views that have not been applied yet, or None.
        source: index of the dataset of all tasks, in a mixture of several.
        ids: ``(t, s)`` and ``(t, q)`` int64 that identify support and query images in their split, so that their
            features can be cached; None for a part of an episode and for images outside of any split.
    """

    support: Labelled
    query: Labelled
    way: int
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, which is not used
    views: Views | None = None
    source: int = 0
    ids: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> Episode:
        """Return the tasks with everything but :attr:`index` on ``device``; a copy to a GPU of CUDA does not wait."""
        move = partial(Tensor.to, device=device, non_blocking=device.type not in ("cpu", "mps"))
        return self._replace(
            support=Labelled(*map(move, self.support)),
            query=Labelled(*map(move, self.query)),
            views=self.views and self.views._replace(support=move(self.views.support), query=move(self.views.query)),
            ids=self.ids and (move(self.ids[0]), move(self.ids[1])),
        )

    def grouped_by_class(self) -> Episode:
        """Return the tasks with queries grouped by class, in the order of the first query of each class.

        This order is random in tasks from a sampler, so that the position of a query does not reveal its class. Views
        must have been applied.
        """
        images, labels = self.query
        first = (labels.unsqueeze(-1) == labels.unsqueeze(-2)).int().argmax(-1)
        order = first.argsort(dim=1, stable=True)
        tasks = torch.arange(len(order), device=order.device).unsqueeze(-1)
        ids = None if self.ids is None else (self.ids[0], self.ids[1].gather(1, order.to(self.ids[1].device)))
        return self._replace(query=Labelled(images[tasks, order], labels.gather(1, order)), ids=ids)

    def split(self, size: int | None) -> list[Episode]:
        """Split into episodes of ``size`` tasks each, or return one with all tasks; views must have been applied."""
        if size is None:
            return [self]
        fields = (*self.support, *self.query, self.index)
        return [
            Episode(Labelled(*tensors[:2]), Labelled(*tensors[2:4]), self.way, tensors[4], source=self.source)
            for tensors in zip(*(field.split(size) for field in fields), strict=True)
        ]
