"""Lower bounds of one-shot accuracy, given the variance ratio (Goldblum et al. 2020, Theorem 1). NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def published_bound(eps: ArrayLike) -> np.ndarray:
    """Return the bound reported as Theorem 1, ``1 - 32 eps / (1 - eps)``, and 0 where it is vacuous."""
    eps = np.asarray(eps, float)
    return np.where(eps < 1, 1 - 32 * eps / np.maximum(1 - eps, 1e-12), 0.0).clip(0)


def bound(eps: ArrayLike) -> np.ndarray:
    """Return a tighter bound, ``1 - 16 eps / (2 - eps)``, and 0 where it is vacuous.

    If both examples and the query lie within ``D / 4`` of their class means, the example of the right class is nearer.
    By Chebyshev's inequality this fails with probability at most ``16 (2 Var X + Var Y) / D^2``, hence, whichever class
    is ``X``, at most ``32 (Var X + Var Y) / D^2``, where ``(Var X + Var Y) / D^2 = eps / (4 - 2 eps)``. Averaged over
    both classes, as in :func:`~metafew.analysis.features.sufficient_condition.one_shot_accuracy`, three quarters of
    this would suffice.
    """
    eps = np.asarray(eps, float)
    return np.where(eps < 2, 1 - 16 * eps / np.maximum(2 - eps, 1e-12), 0.0).clip(0)
