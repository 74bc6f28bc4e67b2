"""The multi-class support vector machine of MetaOptNet (Lee et al. 2019; Crammer and Singer 2001)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from metafew.config.option_values import check_positive
from metafew.heads.head import FeatureHead
from metafew.solvers.crammer_singer import crammer_singer, gram_matrix


class SVM(FeatureHead):
    """Logits ``scale * sum_i alpha_im <f(x_i), f(x)>`` with ``alpha`` the dual solution of MetaOptNet's SVM.

    This is the Crammer-Singer SVM with the identity added to the Gram matrix. MetaOptNet adds it to make the matrix
    positive definite; it changes the solution. :mod:`metafew.solvers.crammer_singer` solves the problem to optimality,
    whereas the authors stop their interior-point solver after 15 iterations in training and 3 at test. Gradients use
    implicit differentiation.

    Args:
        c: upper bound of the dual variable of a row's own class: the price of a margin violation.
        scale: initial value of the learned scale of the logits.
    """

    exemptions: ClassVar = {"host_waits": "the solver reads which bounds are active, and when they have settled"}

    def __init__(self, c: float = 0.1, scale: float = 1.0):
        super().__init__()
        check_positive("head.c", c, 0.1)
        self.c = c
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return scaled scores ``(t, q, w)``."""
        alpha = crammer_singer(gram_matrix(support), labels, way, self.c)
        return self.scale * (query @ support.mT @ alpha.to(query.dtype))
