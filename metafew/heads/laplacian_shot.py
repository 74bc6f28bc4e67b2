"""Nearest prototypes, with labels that agree among neighbouring queries, LaplacianShot (Ziko et al. 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metafew.config.option_values import check_choice, check_integer, check_range, check_truth
from metafew.heads.bd_cspn import rectified
from metafew.heads.head import class_means, negative_distances
from metafew.heads.simpleshot import SimpleShot


class LaplacianShot(SimpleShot):
    """Nearest prototype, regularised so that queries have the labels of their nearest neighbours among the queries.

    With ``a_qm`` the squared distance of the transformed query ``q`` to the prototype of class ``m``, labels ``y``
    result from repeated updates ``y_q = softmax(-a_q + weight sum_p w_qp y_p)``, where ``w_qp`` is 1 for the ``p``
    among the nearest neighbours of ``q``, else 0 (Algorithm 1). Each update minimises a bound on
    ``sum_q y_q (a_q + log y_q) - weight / 2 sum_qp w_qp y_q y_p``, which decreases if ``w`` is symmetric and positive
    semidefinite. A ``w`` of nearest neighbours is neither; the authors, too, use it as it is. Logits are those of the
    last update.

    Only the shift of ``rectify`` assumes balanced classes; with it and a single query, accuracy is at chance, as
    that of :class:`~metafew.heads.bd_cspn.BDCSPN`. Departures: by default features are not centred by the mean
    of training features; prototypes are rectified as in BD-CSPN, by weights that are normalized over the rows of a
    class, whereas the authors' code normalizes them over classes, with ``e = 10``, groups support rows by their
    predicted class, too, and takes the plain mean of the weighted rows; the number of updates is fixed.

    Args:
        weight: ``lambda``, which the authors choose on validation tasks among 0.1 to 1.5; because of the departures,
            the best value may be another one. 0 is the nearest prototype.
        neighbours: nearest neighbours of a query; the authors' 3 count the query itself.
        steps: updates.
        rectify: shift the queries and rectify the prototypes as BD-CSPN does.
        transform: of features, as in :class:`~metafew.heads.simpleshot.SimpleShot`: ``l2n``, unit length, which needs
            no training features; or ``cl2n``, the authors'.
    """

    transductive = True

    def __init__(
        self, weight: float = 0.7, neighbours: int = 2, steps: int = 20, rectify: bool = True, transform: str = "l2n"
    ):
        check_choice("head.transform", transform, ("l2n", "cl2n"))
        super().__init__(transform)
        check_range("head.weight", weight, 0, math.inf)
        check_integer("head.neighbours", neighbours, 1, 2)
        check_integer("head.steps", steps, 0, 20)
        check_truth("head.rectify", rectify)
        self.weight, self.neighbours, self.steps, self.rectify = weight, neighbours, steps, rectify

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return the logits ``(t, q, w)`` of the last update."""
        support, query = self.transformed(support, query)
        if self.rectify:
            prototypes, query = rectified(support, labels, query, way)
        else:
            prototypes = class_means(support, labels, way)
        return updated(
            negative_distances(query, prototypes), self.weight * affinity(query, self.neighbours), self.steps
        )


def affinity(rows: Tensor, neighbours: int) -> Tensor:
    """Return 1 where a row of ``rows`` ``(t, n, d)`` has another as a nearest neighbour, else 0, ``(t, n, n)``."""
    closeness = negative_distances(rows.detach(), rows.detach())
    closeness.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    count = min(neighbours, rows.shape[1] - 1)
    return torch.zeros_like(closeness).scatter_(2, closeness.topk(count).indices, 1)


def updated(logits: Tensor, affinity: Tensor, steps: int) -> Tensor:
    """Return logits ``(t, q, w)`` after ``steps`` updates with a weighted affinity ``(t, q, q)``."""
    result = logits
    for _ in range(steps):
        result = logits + affinity @ result.softmax(-1)
    return result
