"""Gaussian classes: the Mahalanobis head of Simple CNAPS (Bateni et al. 2020), and discriminant analysis."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metafew.config.option_values import check_choice, check_positive
from metafew.heads.head import FeatureHead, negative_distances
from metafew.solvers.cholesky import cholesky


class LDA(FeatureHead):
    """Mahalanobis distances to class means: ``logit_m = -1/2 (f(x) - p_m)' Q_m^-1 (f(x) - p_m)``.

    ``p_m`` is the mean of the ``n_m`` support features of class ``m``, and ``Q_m`` one of

    - ``blended``: ``l_m S_m + (1 - l_m) S + beta I`` with ``l_m = n_m / (n_m + 1)``, as in Simple CNAPS;
    - ``pooled``: ``sum_m (n_m - 1) S_m / (s - w) + beta I``, linear discriminant analysis;
    - ``class``: ``S_m + beta I``, and ``-1/2 log det Q_m`` is added to the logit: quadratic discriminant analysis;

    with the unbiased covariances ``S_m`` of the features of the class, 0 for a single row, and ``S`` of all support
    features. All classes have the same prior. As in the paper, ``blended`` has no determinants. The published code of
    Simple CNAPS leaves out the factor 1/2, and takes for a class of one row the variance over the elements of its
    feature. This is the classifier on its own, without the networks that adapt the backbone of Simple CNAPS.

    All computation is in float64, with the smaller of ``(s, s)`` and ``(d, d)`` matrices, one for each class: time
    ``O(w s^3)`` or ``O(w d^3)``. A task with non-finite features gets NaN and does not affect other tasks.

    Args:
        covariance: ``blended``, ``pooled`` or ``class``.
        beta: weight of the identity, whose effect depends on the scale of the features; 1 in the paper.
    """

    exemptions: ClassVar = {"onnx": "ONNX has no operation that factors a matrix"}

    def __init__(self, covariance: str = "blended", beta: float = 1.0):
        super().__init__()
        check_choice("head.covariance", covariance, ["blended", "pooled", "class"])
        check_positive("head.beta", beta, example=1)
        self.covariance, self.beta = covariance, beta

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return log-likelihoods ``(t, q, w)`` up to a constant; log-determinants count for ``covariance=class``."""
        rows, queries = support.double(), query.double()
        centre = rows.mean(1, keepdim=True)
        rows, queries = rows - centre, queries - centre
        members = F.one_hot(labels, way).mT.double()  # (t, w, s)
        averages = members / members.sum(-1, keepdim=True)
        distances = self.distances if rows.shape[1] > rows.shape[2] else self.distances_by_rows
        squares, determinants = distances(self.root(members, averages), rows, averages, queries)
        logits = -0.5 * (squares + determinants.unsqueeze(-1) * (self.covariance == "class"))
        return logits.mT.to(support.dtype)

    def root(self, members: Tensor, averages: Tensor) -> Tensor:
        """Return ``R``, symmetric ``(t, w or 1, s, s)``, with ``Q_m = (R_m A)' R_m A + beta I`` for centred rows ``A``.

        ``P_m = diag(members_m) - members_m' averages_m`` is a projection, which centres the rows of a class, and
        ``S_m = A' P_m A / (n_m - 1)``. The root of ``a P_m + b I`` is ``sqrt(b) I + (sqrt(a + b) - sqrt(b)) P_m``.
        """
        counts, total = members.sum(-1)[..., None, None], members.shape[-1]
        centring = torch.diag_embed(members) - members.unsqueeze(-1) * averages.unsqueeze(-2)
        identity = torch.eye(total, dtype=members.dtype, device=members.device)
        if self.covariance == "pooled":
            return centring.sum(1, keepdim=True) / max(total - members.shape[1], 1) ** 0.5
        if self.covariance == "class":
            return centring / (counts - 1).clamp_min(1).sqrt()
        own, shared = counts / (counts + 1) / (counts - 1).clamp_min(1), 1 / (counts + 1) / (total - 1)
        return shared.sqrt() * identity + ((own + shared).sqrt() - shared.sqrt()) * centring

    def distances(self, root: Tensor, rows: Tensor, averages: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared distances ``(t, w, q)``, and the logarithms ``(t, w or 1)`` of determinants, from ``Q``."""
        factors = root @ rows.unsqueeze(1)
        differences = queries.unsqueeze(1) - (averages @ rows).unsqueeze(2)
        return self.solve(factors.mT @ factors, differences.mT)

    def distances_by_rows(self, root: Tensor, rows: Tensor, averages: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same by Woodbury's identity, and the determinants without their common factor.

        With ``F = R A``, ``beta (F'F + beta I)^-1 = I - F' (F F' + beta I)^-1 F``.
        """
        gram = rows @ rows.mT
        products = (rows @ queries.mT).unsqueeze(1) - (averages @ gram).unsqueeze(-1)
        inside, determinants = self.solve(root @ gram.unsqueeze(1) @ root, root @ products)
        return (-negative_distances(queries, averages @ rows).mT - inside) / self.beta, determinants

    def solve(self, matrices: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``v' (M + beta I)^-1 v`` for the columns of ``vectors``, and the logarithms of the determinants."""
        identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        factors = cholesky(matrices + self.beta * identity)
        halves = torch.linalg.solve_triangular(factors, vectors, upper=False)
        return halves.square().sum(-2), 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
