"""Multinomial logistic regression with an L2 penalty, solved to the optimum for each task."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metafew.config.option_values import check_positive
from metafew.heads.head import FeatureHead
from metafew.solvers.logistic import logistic


class Logistic(FeatureHead):
    """Logits ``scale * (f(x) W + b)``, where ``W`` and ``b`` minimise ``1/2 |W|^2 + c * sum of the losses``.

    The losses are the cross-entropies of the support rows, and the intercept ``b`` is not penalised, as in
    scikit-learn's ``LogisticRegression(C=c)``. Gradients use implicit differentiation.

    Args:
        c: weight of each support row's loss relative to the penalty.
        scale: initial value of the learned scale of the logits.
    """

    exemptions: ClassVar = {"host_waits": "the solver checks after each Newton step whether all tasks have converged"}

    def __init__(self, c: float = 1.0, scale: float = 1.0):
        super().__init__()
        check_positive("head.c", c, 1.0)
        self.c = c
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return scaled logits ``(t, q, w)``."""
        return self.scale * logistic(support, labels, way, self.c, query)
