"""Ridge regression on one-hot labels (Bertinetto et al. 2019, R2-D2; Lee et al. 2019, MetaOptNet-RR)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.config.option_values import check_positive
from metafew.heads.head import FeatureHead
from metafew.solvers.ridge import ridge


class Ridge(FeatureHead):
    """Logits of a linear map fitted by least squares with an L2 penalty: ``scale * f(x) (S'S + penalty I)^-1 S'Y``.

    ``S`` are the support features and ``Y`` their one-hot labels. MetaOptNet-RR solves the same problem with
    twice the linear term, so its solution is exactly twice this one; the learned scale absorbs the factor. Goldblum et
    al. (2020) call this head R2-D2; :class:`~metafew.heads.r2d2.R2D2` is the original.

    Args:
        penalty: weight of the L2 penalty.
        learn_penalty: learn the logarithm of the penalty, starting from ``penalty``.
        scale: initial value of the learned scale of the logits.
    """

    exemptions: ClassVar = {"cuda_graph": "torch solves its equations with MAGMA, which a CUDA graph cannot capture"}

    def __init__(self, penalty: float = 50.0, learn_penalty: bool = False, scale: float = 1.0):
        super().__init__()
        check_positive("head.penalty", penalty, example=50)
        self.initial_penalty = penalty
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty))) if learn_penalty else None
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    @property
    def strength(self) -> float | Tensor:
        """The weight of the L2 penalty."""
        return self.initial_penalty if self.log_penalty is None else self.log_penalty.exp()

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return scaled predictions ``(t, q, w)`` of the one-hot labels."""
        targets = F.one_hot(labels, way).to(support.dtype)
        return self.scale * ridge(support, targets, self.strength, query)
