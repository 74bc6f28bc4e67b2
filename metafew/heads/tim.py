"""Transductive information maximization, TIM (Boudiaf et al. 2020)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metafew.config.option_values import check_choice, check_integer, check_positive, check_range
from metafew.heads.cosine import direction
from metafew.heads.head import FeatureHead, class_means, negative_distances
from metafew.heads.inner import Adam


class TIM(FeatureHead):
    """Fit class weights ``w_m`` to the support set and to the mutual information of queries and their labels.

    With ``z`` the features at unit length and ``p_im`` the softmax of ``-temperature / 2 ||z_i - w_m||^2`` over the
    classes, ``w`` starts at the class means and minimises ``support_weight CE - H(Y) + conditional_weight H(Y|X)``: the
    mean cross-entropy of the support set, the entropy of the mean ``p`` of the queries, and the mean entropy of their
    ``p`` (Equations 1 to 3). ``H(Y)`` is largest where every class has the same number of queries: the head assumes
    balanced classes, and unbalanced queries cost accuracy (Veilleux et al. 2021).

    ``solver="adm"`` alternates :func:`assigned_labels` of the queries, in closed form, and a step of ``w`` (TIM-ADM,
    Proposition 1); ``"gradient"`` takes steps of Adam (TIM-GD). Defaults are those of the authors' code. As published,
    nothing bounds the steps of ``adm``: the objective can rise for a while, and does in most 1-shot tasks of
    mini-ImageNet on features of a conv4. In training the change of ``w`` counts as a constant, so that
    gradients pass through the class means and the features only; Boudiaf et al. do not train through it.

    Args:
        solver: ``adm`` or ``gradient``.
        steps: updates; None: 150 for ``adm`` and 1000 for ``gradient``.
        lr: learning rate of Adam.
        support_weight: weight of the support set's cross-entropy, ``lambda``.
        conditional_weight: weight of the conditional entropy, ``alpha``.
        temperature: factor of the logits.
    """

    transductive = True

    def __init__(
        self, solver: str = "adm", steps: int | None = None, lr: float = 1e-4, support_weight: float = 0.1,
        conditional_weight: float = 0.1, temperature: float = 15.0,
    ):  # fmt: skip
        super().__init__()
        check_choice("head.solver", solver, ("adm", "gradient"))
        if steps is not None:
            check_integer("head.steps", steps, 0, 150)
        check_range("head.lr", lr, 0, math.inf)
        check_range("head.support_weight", support_weight, 1e-6, math.inf)
        check_range("head.conditional_weight", conditional_weight, 0, math.inf)
        check_positive("head.temperature", temperature, example=15)
        self.solver, self.lr, self.temperature = solver, lr, temperature
        self.steps = steps if steps is not None else {"adm": 150, "gradient": 1000}[solver]
        self.support_weight, self.conditional_weight = support_weight, conditional_weight

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return ``-temperature / 2 ||z - w_m||^2``, ``(t, q, w)``."""
        support, query = direction(support), direction(query)
        weights, members = class_means(support, labels, way), F.one_hot(labels, way).to(support.dtype)
        solve = self.alternated if self.solver == "adm" else self.descended
        with torch.no_grad():
            change = solve(weights, support, members, query) - weights
        return self.logits(query, weights + change)

    def logits(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the logits ``(t, n, w)`` of features ``(t, n, d)`` of unit length."""
        return self.temperature / 2 * negative_distances(rows, weights)

    def alternated(self, weights: Tensor, support: Tensor, members: Tensor, query: Tensor) -> Tensor:
        """Return the weights ``(t, w, d)`` after the updates of TIM-ADM."""
        rows, counts = torch.cat([support, query], 1), (support.shape[1], query.shape[1])
        shares = [self.support_weight / (1 + self.conditional_weight) / counts[0], 1 / counts[1]]
        for _ in range(self.steps):
            given, found = self.logits(rows, weights).log_softmax(-1).split(counts, 1)
            labels = assigned_labels(found, self.conditional_weight)
            assigned = torch.cat([shares[0] * members, shares[1] * labels], 1)
            predicted = torch.cat([shares[0] * given.exp(), shares[1] * found.exp()], 1)
            weights = weights + pull(assigned - predicted, rows, weights) / assigned.sum(1).unsqueeze(-1)
        return weights

    def descended(self, weights: Tensor, support: Tensor, members: Tensor, query: Tensor) -> Tensor:
        """Return the weights ``(t, w, d)`` after the steps of TIM-GD."""
        rule = Adam(beta1=0.9)
        state = rule.start({"": weights})
        for _ in range(self.steps):
            gradient = self.gradient(weights, support, members, query)
            directions, state = rule({"": gradient}, state)
            weights = weights - self.lr * directions[""]
        return weights

    def gradient(self, weights: Tensor, support: Tensor, members: Tensor, query: Tensor) -> Tensor:
        """Return the gradient ``(t, w, d)`` of the objective with respect to the weights."""
        rows, counts = torch.cat([support, query], 1), (support.shape[1], query.shape[1])
        given, found = self.logits(rows, weights).log_softmax(-1).split(counts, 1)
        p = found.exp()
        shares = found.logsumexp(1, keepdim=True) - math.log(counts[1])  # logarithms of the mean of p
        slope = shares - self.conditional_weight * found  # in p, up to a constant for each query
        slope = p * (slope - (p * slope).sum(-1, keepdim=True)) / counts[1]
        residual = torch.cat([self.support_weight / counts[0] * (given.exp() - members), slope], 1)
        return self.temperature * pull(residual, rows, weights)


def pull(residual: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return ``sum_i r_im (z_i - w_m)``, ``(t, w, d)``, for ``r`` ``(t, n, w)``, ``z`` ``(t, n, d)`` and ``w``."""
    return residual.mT @ rows - residual.sum(1).unsqueeze(-1) * weights


def assigned_labels(log_p: Tensor, conditional_weight: float) -> Tensor:
    """Return the labels of queries for fixed weights, ``q_im ~ p_im^a / sqrt(sum_j p_jm^a)`` with ``a = 1 + alpha``.

    Args:
        log_p: ``(t, q, w)``, logarithms of the probabilities of classes.
        conditional_weight: ``alpha``.
    """
    powers = (1 + conditional_weight) * log_p
    return (powers - powers.logsumexp(1, keepdim=True) / 2).softmax(-1)
