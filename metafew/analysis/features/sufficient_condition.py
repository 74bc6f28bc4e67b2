"""The sufficient condition for one-shot classification of two classes (Goldblum et al. 2020, Theorem 1).

``X`` and ``Y`` are the features of two classes, ``U`` is ``X`` or ``Y`` with equal chances, and a variance is the trace
of the covariance. If ``eps = (Var X + Var Y) / Var U`` is small, a random ``x`` and ``y`` classify a random third
feature correctly with probability near 1. For isotropic Gaussians of total variance ``s`` whose means are ``D`` apart,
``eps = 8 / (4 + r)`` with ``r = D^2 / s``; it is 2 if the means are equal.
"""

from __future__ import annotations

import torch
from torch import Tensor


def epsilon(x: Tensor, y: Tensor) -> float:
    """Return ``(Var X + Var Y) / Var U``, from 0 to 2, of the empirical distributions.

    Args:
        x: features ``(n, d)`` of one class.
        y: features ``(m, d)`` of the other.
    """
    x, y = x.double(), y.double()
    within = sum((part - part.mean(0)).square().sum(1).mean() for part in (x, y))
    both = within / 2 + (x.mean(0) - y.mean(0)).square().sum() / 4  # the law of total variance
    return float(within / both) if both > 0 else 2.0


def one_shot_accuracy(x: Tensor, y: Tensor) -> float:
    """Return the accuracy of the nearest of two examples, one of each class, over all triples of examples and query.

    The query is neither of the examples, and equal distances count one half. This is the theorem's max-margin
    classifier. Memory grows with the square of the number of rows, not with its cube.

    Args:
        x: features ``(n, d)`` of one class, at least two.
        y: features ``(m, d)`` of the other, likewise.
    """
    x, y = x.double(), y.double()
    return (_accuracy(x, y) + _accuracy(y, x)) / 2


def _accuracy(own: Tensor, other: Tensor) -> float:
    """Return the accuracy of queries of the class ``own``."""
    exact = "donot_use_mm_for_euclid_dist"  # equal features have a distance of 0
    near, far = torch.cdist(own, own, compute_mode=exact), torch.cdist(own, other, compute_mode=exact).sort(1).values
    closer = sum(torch.searchsorted(far, near, right=right) for right in (False, True)).double() / 2
    right = 1 - closer / len(other)
    count = len(own)
    return float((right.sum() - right.diagonal().sum()) / (count * (count - 1)))
