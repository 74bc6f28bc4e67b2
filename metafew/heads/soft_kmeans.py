"""Prototypes refined by the queries with soft k-means (Ren et al. 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metafew.config.option_values import check_integer
from metafew.heads.head import FeatureHead, class_means, negative_distances, weighted_means


class SoftKMeans(FeatureHead):
    """Nearest prototype, where queries refine the prototypes: soft k-means that starts from the class means.

    In each step a query ``x`` belongs to class ``m`` with weight ``z_m``, the softmax of ``-||f(x) - p_m||^2`` over the
    classes, and ``p_m`` becomes the mean of the support rows of class ``m``, with weight 1, and of all queries, with
    weight ``z_m`` (Section 3.1.1). Logits are the negative squared distances to the last prototypes.

    Ren et al. refine with a separate set of unlabelled images; here, as in their code where there is none, these are
    the queries. Their distractor classes are left out. Balanced classes are not assumed.

    Args:
        steps: refinements. Ren et al. find no gain after the first; 0 is ProtoNet.
    """

    transductive = True

    def __init__(self, steps: int = 1):
        super().__init__()
        check_integer("head.steps", steps, 0, 1)
        self.steps = steps

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return negative squared distances ``(t, q, w)`` to the refined prototypes."""
        rows, members = torch.cat([support, query], 1), F.one_hot(labels, way).to(support.dtype)
        prototypes = class_means(support, labels, way)
        for _ in range(self.steps):
            assigned = negative_distances(query, prototypes).softmax(-1)
            prototypes = weighted_means(rows, torch.cat([members, assigned], 1))
        return negative_distances(query, prototypes)
