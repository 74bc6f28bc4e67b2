"""Prototypes rectified by pseudo-labelled queries, BD-CSPN (Liu et al. 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.config.option_values import check_range
from metafew.heads.cosine import cosines, direction
from metafew.heads.head import FeatureHead, class_means


class BDCSPN(FeatureHead):
    """Nearest prototype by cosine, after the two corrections of :func:`rectified`: ``logit_m = scale * cos(x, p_m)``.

    Liu et al. rectify with the queries of highest confidence in each class; here, as in other public implementations,
    all queries count, and features are those of any training, whereas they train with a cosine classifier. The first
    correction assumes that support set and queries have the same balance of classes: if the queries are unbalanced, the
    two means differ for reasons other than a bias. A single query becomes the mean of the support set, whatever its
    features are, and accuracy is at chance (``test.queries=single``).

    Args:
        scale: initial value of the learned scale of the logits.
        sharpness: factor ``e`` of the cosine in the weights of :func:`rectified`. Public implementations have 1 or 10.
            With 10, a single support row outweighs the queries of its class where their cosines are low.
    """

    transductive = True

    def __init__(self, scale: float = 10.0, sharpness: float = 1.0):
        super().__init__()
        check_range("head.sharpness", sharpness, 0, torch.inf)
        self.sharpness = sharpness
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return scaled cosines ``(t, q, w)`` to the rectified prototypes."""
        prototypes, query = rectified(support, labels, query, way, self.sharpness)
        return self.scale * cosines(query, prototypes)


def rectified(
    support: Tensor, labels: Tensor, query: Tensor, way: int, sharpness: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return prototypes ``(t, w, d)`` rectified by the queries, and the shifted queries, from features.

    Features are scaled to unit length. To reduce the cross-class bias, queries are shifted by the difference between
    the mean of the support set and that of the queries. To reduce the intra-class bias, each query joins the class
    ``m`` whose mean feature ``p_m`` has the highest cosine with it, and ``p_m`` becomes the mean of the support rows
    and queries of the class with weights proportional to ``exp(e cos(x, p_m))`` (Liu et al. 2020, Section 3.2).

    Args:
        support: features ``(t, s, d)``.
        labels: ``(t, s)``.
        query: features ``(t, q, d)``.
        way: number of classes.
        sharpness: ``e``; 0 weighs all rows of a class alike.
    """
    support, query = direction(support), direction(query)
    query = query + support.mean(1, keepdim=True) - query.mean(1, keepdim=True)
    rows = torch.cat([support, query], 1)
    similarity = cosines(rows, class_means(support, labels, way))
    classes = torch.cat([labels, similarity[:, labels.shape[1] :].argmax(-1)], 1)
    weights = (sharpness * similarity).masked_fill(F.one_hot(classes, way) == 0, -torch.inf).softmax(1)
    return weights.mT @ rows, query
