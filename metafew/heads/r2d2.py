"""The original R2-D2: ridge regression with an intercept (Bertinetto et al. 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metafew.heads.ridge import Ridge
from metafew.solvers.ridge import ridge


class R2D2(Ridge):
    """Logits ``scale * (f(x) W + b)`` of least squares with an L2 penalty on ``W`` and on the intercept ``b``.

    The support features with a column of ones, ``S``, and their one-hot labels ``Y`` are both divided by the square
    root of the number ``n`` of support rows, so ``[W; b] = (S'S / n + penalty I)^-1 S'Y / n``: ordinary ridge
    regression with penalty ``n * penalty``. Queries are not divided; their column of ones adds ``b``. ``scale`` is
    learned. The authors' adjust layer also adds a learned number to all logits, which is omitted here: cross-entropy
    and predictions do not depend on it, so it would have no gradient.

    Args:
        penalty: weight of the L2 penalty.
        learn_penalty: learn the logarithm of the penalty, starting from ``penalty``.
        scale: initial value of the learned scale of the logits.
    """

    def __init__(self, penalty: float = 50.0, learn_penalty: bool = False, scale: float = 10.0):
        super().__init__(penalty, learn_penalty, scale)

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return scaled predictions ``(t, q, w)`` of the one-hot labels."""
        targets = F.one_hot(labels, way).to(support.dtype)
        support, query = (F.pad(features, (0, 1), value=1.0) for features in (support, query))
        return self.scale * ridge(support, targets, support.shape[1] * self.strength, query)
