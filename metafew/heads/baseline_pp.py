"""Baseline++: a cosine classifier fitted to each task by gradient descent (Chen et al. 2019)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from metafew.config.option_values import check_integer, check_positive
from metafew.heads.cosine import direction
from metafew.heads.head import FeatureHead


class BaselinePP(FeatureHead):
    """Logits ``scale * cos(f(x), w_m)``, with ``w`` fitted to the support set by its mean cross-entropy.

    Gradient descent starts from the class means of the directions of features, and scales each ``w_m`` to unit length
    after each step. As ``w`` is a combination of support rows, a step only needs their Gram matrix. All tasks are
    fitted at once, and gradients pass through the steps.

    Chen et al. start from random weights, which would make results depend on a seed and on the order of classes, and
    take 100 epochs of minibatches of 4 rows, with weight decay 0.001 and momentum; a step here takes all rows, so that
    in 5-way tasks they take 2 (one-shot) to 7 times (five-shot) as many, and ``head.steps`` may be raised. Their code
    also learns the length of each ``w_m`` by weight normalization, which their paper does not mention. Their networks
    are trained with a cosine classifier, too; ``objective=classical`` trains with a linear layer.

    Args:
        steps: gradient steps.
        lr: learning rate.
        scale: factor of the cosines, in fitting and in logits; fixed. The default is that of the published code for up
            to 200 classes.
    """

    def __init__(self, steps: int = 100, lr: float = 0.01, scale: float = 2.0):
        super().__init__()
        check_integer("head.steps", steps, 0, example=100)
        check_positive("head.lr", lr, example=0.01)
        check_positive("head.scale", scale, example=2)
        self.steps, self.lr, self.scale = steps, lr, scale

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return scaled cosines ``(t, q, w)``."""
        rows = direction(support)
        gram, targets = rows @ rows.mT, F.one_hot(labels, way).to(rows.dtype)
        weights = unit(targets, gram)  # (t, s, w): w_m is rows' weights_m
        for _ in range(self.steps):
            errors = (self.scale * gram @ weights).softmax(-1) - targets
            weights = unit(weights - self.lr * self.scale / labels.shape[1] * errors, gram)
        return self.scale * (direction(query) @ rows.mT @ weights)


def unit(weights: Tensor, gram: Tensor) -> Tensor:
    """Scale the combinations ``weights`` ``(t, s, w)`` of rows with Gram matrix ``gram`` to unit length; 0 stays 0."""
    squares = (weights * (gram @ weights)).sum(1, keepdim=True)
    return weights * squares.where(squares > 1e-16, float("inf")).rsqrt()
