"""Prototypical networks (Snell et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafew.heads.head import FeatureHead, class_means, negative_distances


class ProtoNet(FeatureHead):
    """Nearest class mean: ``logit_m = -||f(x) - p_m||^2`` with ``p_m`` the mean feature of class ``m``.

    Args:
        divide: divide the squared distance by the feature dimension and multiply it by a learned scale that starts
            at 1, as in the ProtoNet of Lee et al. (2019); Snell et al. do neither.
    """

    def __init__(self, divide: bool = False):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(())) if divide else None

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return negative squared distances ``(t, q, w)`` to the class means."""
        logits = negative_distances(query, class_means(support, labels, way))
        return logits if self.scale is None else logits * (self.scale / query.shape[-1])
