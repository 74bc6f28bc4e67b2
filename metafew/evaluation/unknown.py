"""Distances of queries from the classes of a support set, to mark images that may belong to none of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metafew.heads.head import class_means

SHARE = 0.95
"""The share of new images of the classes that should not be marked."""
EXACT = "donot_use_mm_for_euclid_dist"
"""The mode of :func:`torch.cdist` without the expansion of the square, which loses digits to a common offset."""


def distances(support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
    """Return the distance of each query to the nearest class mean, divided by the :func:`limit` of the support set.

    Values above 1 mark a query that is farther from all classes than their own examples are.

    Args:
        support: features ``(s, d)``.
        labels: ``(s,)`` in ``0..way-1``.
        query: features ``(q, d)``.
        way: number of classes.

    Returns:
        ``(q,)``.
    """
    nearest = torch.cdist(query, class_means(support, labels, way), compute_mode=EXACT).amin(-1)
    return (nearest / limit(support, labels, way)).where(nearest != 0, 0.0)


def limit(support: Tensor, labels: Tensor, way: int) -> Tensor:
    """Return the distance from the nearest class mean beyond which a query is unlike the support set.

    An example ``x`` of a class with ``n`` examples and mean ``m`` stands for a new image of this class. Its distance
    ``|x - m|`` is multiplied by ``sqrt((n + 1) / (n - 1))``, so that its expected square is that of a new image:
    ``(1 + 1 / n) v`` for a variance ``v``. With ``k`` such distances, the limit is the one of rank ``0.95 (k + 1)``,
    rounded up, or the largest if ``k`` is less than 19. It is then exceeded by 1 in 20 new images of the classes, or by
    1 in ``k + 1``. Classes with a single example have no spread; if there are no others, the limit is the median
    distance of a class to the nearest other.

    Args:
        support: features ``(s, d)``.
        labels: ``(s,)`` in ``0..way-1``.
        way: number of classes.
    """
    means = class_means(support, labels, way)
    counts = torch.bincount(labels, minlength=way)[labels]
    repeated = counts > 1
    if not repeated.any():
        between = torch.cdist(means, means, compute_mode=EXACT).fill_diagonal_(torch.inf).amin(-1)
        return between.quantile(0.5)
    examples = ((support - means[labels]).norm(dim=-1) * ((counts + 1) / (counts - 1)).sqrt())[repeated]
    rank = min(len(examples), math.ceil(SHARE * (len(examples) + 1)))
    return examples.sort().values[rank - 1]
