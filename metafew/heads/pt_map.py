"""Class centres fitted by optimal transport to balanced classes, PT-MAP (Hu et al. 2021)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from metafew.config.option_values import check_integer, check_range
from metafew.heads.cosine import direction
from metafew.heads.head import FeatureHead, class_means, negative_distances, weighted_means

EPS = 1e-6
"""Added to features before the power, whose slope at 0 is infinite."""


class PTMAP(FeatureHead):
    """Power transform, then alternating updates of class centres and of a balanced soft assignment of queries.

    Features become ``(f + 1e-6)^power``, of unit length; then the support set and the queries are each centred at their
    own mean and scaled to unit length again. Starting from the class means, each step assigns the queries to classes by
    the transport plan ``P`` of :func:`balanced`, and moves each centre a fraction ``rate`` of the way to the mean of
    the support rows of the class and of all queries, weighted by ``P`` (Algorithm 1). Logits are the logarithms of a
    last ``P``, up to a constant for each query.

    ``P`` gives every class the same number of queries. This prior is an assumption about the task: it raises the
    accuracy of balanced tasks and costs accuracy on unbalanced ones (Veilleux et al. 2021), and with one query per task
    it leaves no preference for any class.

    Defaults are those of the authors' code, whose script has five shots. Departures: features may be negative, where
    the power keeps the sign; Sinkhorn iterations continue from those of the previous step, and their number is fixed.
    QR decomposition, by which the authors reduce the dimension, changes no distance and is left out.

    Args:
        power: exponent of the power transform; 1 leaves features as they are.
        sharpness: ``lambda``, the inverse weight of the plan's entropy.
        rate: part of the way that centres move in each step.
        steps: steps of the centres.
        iterations: iterations of Sinkhorn's algorithm in each step.
    """

    transductive = True
    exemptions: ClassVar = {"bfloat16": "the steep power transform multiplies rounding errors of features near 0"}

    def __init__(
        self, power: float = 0.5, sharpness: float = 10.0, rate: float = 0.2, steps: int = 20, iterations: int = 10
    ):
        super().__init__()
        check_range("head.power", power, 0.01, 10)
        check_range("head.sharpness", sharpness, 0, math.inf)
        check_range("head.rate", rate, 0, 1)
        check_integer("head.steps", steps, 0, 20)
        check_integer("head.iterations", iterations, 1, 10)
        self.power, self.sharpness, self.rate, self.steps, self.iterations = power, sharpness, rate, steps, iterations

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return the logarithms ``(t, q, w)`` of a balanced plan, up to a constant for each query."""
        support, query = (self.prepared(rows) for rows in (support, query))
        rows, members = torch.cat([support, query], 1), F.one_hot(labels, way).to(support.dtype)
        centres, offsets = class_means(support, labels, way), support.new_zeros(1, 1, way)
        for _ in range(self.steps):
            scores, offsets = balanced(self.sharpness * negative_distances(query, centres), offsets, self.iterations)
            means = weighted_means(rows, torch.cat([members, scores.softmax(-1)], 1))
            centres = torch.lerp(centres, means, self.rate)
        return balanced(self.sharpness * negative_distances(query, centres), offsets, self.iterations)[0]

    def prepared(self, rows: Tensor) -> Tensor:
        """Return the powers of features ``(t, n, d)``, centred at their mean and of unit length."""
        powers = direction((rows.abs() + EPS).pow(self.power) * torch.where(rows < 0, -1, 1))
        return direction(powers - powers.mean(1, keepdim=True))


def balanced(scores: Tensor, offsets: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return ``scores + offsets``, whose softmax gives all classes equally many queries, and these ``offsets``.

    The softmax over classes is the plan ``P`` that maximises ``sum P scores + H(P)`` where the rows of ``P`` sum to 1
    and its columns to the number of queries divided by the number of classes. Each iteration of Sinkhorn's algorithm
    normalizes the columns, in log space, so that small scores do not underflow.

    Args:
        scores: ``(t, q, w)``, minus the cost of a query in a class, divided by the weight of the entropy.
        offsets: ``(t or 1, 1, w)`` to start from.
        iterations: iterations.
    """
    share = math.log(scores.shape[1] / scores.shape[2])  # alike for all classes: it only keeps offsets from drifting
    for _ in range(iterations):
        offsets = offsets + share - (scores + offsets).log_softmax(-1).logsumexp(1, keepdim=True)
    return scores + offsets, offsets
