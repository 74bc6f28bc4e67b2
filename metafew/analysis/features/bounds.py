"""The least one-shot accuracy that a variance ratio promises (Goldblum et al. 2020, Theorem 1). NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def published_bound(eps: ArrayLike) -> np.ndarray:
    """Return the least accuracy as reported of Theorem 1, ``1 - 32 eps / (1 - eps)``, and 0 where it says nothing."""
    eps = np.asarray(eps, float)
    return np.where(eps < 1, 1 - 32 * eps / np.maximum(1 - eps, 1e-12), 0.0).clip(0)


def bound(eps: ArrayLike) -> np.ndarray:
    """Return a higher one, ``1 - 16 eps / (2 - eps)``, and 0 where it says nothing.

    If the two examples and the third are less than ``D / 4`` from their means, the right one is nearer. By Chebyshev's
    inequality that fails with a probability of at most ``16 (2 Var X + Var Y) / D^2``, hence, with either class for
    ``X``, ``32 (Var X + Var Y) / D^2``, and ``(Var X + Var Y) / D^2 = eps / (4 - 2 eps)``; the mean over both classes
    that :func:`~metafew.analysis.features.sufficient_condition.one_shot_accuracy` takes
    needs only three quarters of it.
    """
    eps = np.asarray(eps, float)
    return np.where(eps < 2, 1 - 16 * eps / np.maximum(2 - eps, 1e-12), 0.0).clip(0)
