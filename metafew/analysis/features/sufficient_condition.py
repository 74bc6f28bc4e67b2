"""The sufficient condition for one-shot classification of two classes (Goldblum et al. 2020, Theorem 1).

``X`` and ``Y`` are the features of two classes, ``U`` is ``X`` or ``Y`` with equal probability, and a variance is the
trace of the covariance. If ``eps = (Var X + Var Y) / Var U`` is small, a random ``x`` and ``y`` classify a random third
feature correctly with probability near 1. The theorem assumes population variances and independent draws;
:func:`epsilon` estimates the variances from few images. For isotropic Gaussians of total variance ``s`` whose means are
``D`` apart, ``eps = 8 / (4 + r)`` with ``r = D^2 / s``; it is 2 if the means are equal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist


def epsilon(x: ArrayLike, y: ArrayLike) -> float:
    """Return ``(Var X + Var Y) / Var U``, from 0 to 2, of the empirical distributions.

    Args:
        x: features ``(n, d)`` of one class.
        y: features ``(m, d)`` of the other.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    within = sum(part.var(0).sum() for part in (x, y))
    both = within / 2 + np.square(x.mean(0) - y.mean(0)).sum() / 4  # the law of total variance
    return float(within / both) if both > 0 else 2.0


def one_shot_accuracy(x: ArrayLike, y: ArrayLike) -> float:
    """Return the leave-one-out 1-NN accuracy with one example per class, over all choices of examples and query.

    The query is never one of the examples, and ties count one half. With one example per class, 1-NN is the max-margin
    classifier of the theorem. Memory is quadratic, not cubic, in the number of rows.

    Args:
        x: features ``(n, d)`` of one class, at least two.
        y: features ``(m, d)`` of the other, likewise.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    return (_accuracy(x, y) + _accuracy(y, x)) / 2


def _accuracy(own: np.ndarray, other: np.ndarray) -> float:
    """Return the accuracy of queries of the class ``own``."""
    near, far = cdist(own, own), np.sort(cdist(own, other), 1)
    closer = [
        (np.searchsorted(to_other, to_own, "left") + np.searchsorted(to_other, to_own, "right")) / 2
        for to_other, to_own in zip(far, near, strict=True)
    ]
    right = 1 - np.array(closer) / len(other)
    return float((right.sum() - right.trace()) / (len(own) * (len(own) - 1)))


def published_bound(eps: ArrayLike) -> np.ndarray:
    """Return the bound of Theorem 1 as reported elsewhere, ``1 - 32 eps / (1 - eps)``, and 0 where it is vacuous."""
    eps = np.asarray(eps, float)
    return np.where(eps < 1, 1 - 32 * eps / np.maximum(1 - eps, 1e-12), 0.0).clip(0)


def bound(eps: ArrayLike) -> np.ndarray:
    """Return a tighter bound, ``1 - 16 eps / (2 - eps)``, and 0 where it is vacuous.

    If both examples and the query lie within ``D / 4`` of their class means, the example of the right class is nearer.
    By Chebyshev's inequality this fails with probability at most ``16 (2 Var X + Var Y) / D^2``, hence, whichever class
    is ``X``, at most ``32 (Var X + Var Y) / D^2``, where ``(Var X + Var Y) / D^2 = eps / (4 - 2 eps)``. For the
    average over both classes, as in :func:`one_shot_accuracy`, three quarters of this bound hold too.
    """
    eps = np.asarray(eps, float)
    return np.where(eps < 2, 1 - 16 * eps / np.maximum(2 - eps, 1e-12), 0.0).clip(0)
