"""Nearest class mean by cosine similarity (after Gidaris & Komodakis 2018; Qi et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafew.heads.head import FeatureHead, class_means


class Cosine(FeatureHead):
    """Cosine to the class means: ``logit_m = scale * cos(f(x), p_m)`` with ``p_m`` the mean feature of class ``m``.

    Gidaris & Komodakis and Qi et al. average features of unit length; here, as in prototypical networks, features are
    averaged unnormalised, and the mean is normalised. This is also the head of Meta-Baseline (Chen et al. 2021), which
    trains it on a backbone pretrained by classification. Features shorter than 1e-8 have no direction and get logits
    of 0.

    Args:
        scale: initial value of the learned scale of the logits.
    """

    def __init__(self, scale: float = 10.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return scaled cosines ``(t, q, w)``."""
        prototypes = class_means(support, labels, way)
        return self.scale * cosines(query, prototypes)


def cosines(rows: Tensor, points: Tensor) -> Tensor:
    """Return the cosines ``(t, n, w)`` between ``rows`` ``(t, n, d)`` and ``points`` ``(t, w, d)``."""
    return direction(rows) @ direction(points).mT


def direction(features: Tensor) -> Tensor:
    """Return ``features`` ``(..., d)`` scaled to unit length, or 0 with gradient 0 if they have no direction."""
    squares = features.square().sum(-1, keepdim=True)
    return features * squares.where(squares > 1e-16, torch.inf).rsqrt()
