"""Loss terms per task (Goldblum et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from metafew.errors import UsageError
from metafew.objectives.clustering import feature_clustering, hyperplane_variation

DRAWN_ON_THE_HOST = {"host_waits": "NumPy draws the pairs of classes from the labels, alike on every device"}


class NoRegularizer(nn.Module):
    """Add no term."""

    on_features = False
    on_weights = False
    exemptions: ClassVar[dict[str, str]] = {}


class Regularizer(nn.Module):
    """A term ``weight * measure``.

    Args:
        weight: factor of the measure.
    """

    on_features = False
    """Whether ``forward`` takes the features of pairs of classes."""
    on_weights = False
    """Whether ``forward`` takes the weights of a task and their mean over tasks."""
    exemptions: ClassVar[dict[str, str]] = {}
    """Contracts of tests/contracts that the term does not keep, each with the reason."""

    def __init__(self, weight: float = 1.0):
        super().__init__()
        if not (weight >= 0 and math.isfinite(weight)):
            raise UsageError(
                f"expected regularizer.weight to be a finite number of at least 0, got {weight}: "
                "type regularizer.weight=1.0"
            )
        self.weight = weight


class PairRegularizer(Regularizer):
    """A term of the features of pairs of classes: ``weight * measure``.

    Args:
        weight: factor of the measure.
    """

    on_features = True
    measure: Callable[[Tensor], Tensor]

    def forward(self, pairs: Tensor) -> Tensor:
        """Return the term of each task, ``(...)``, from features ``(..., p, 2, 2, d)`` of pairs of classes."""
        return self.weight * self.measure(pairs)


class FeatureClustering(PairRegularizer):
    """Pull images of a class together and push classes apart: ``weight * R_FC``.

    Args:
        weight: factor of the measure.
    """

    exemptions: ClassVar = DRAWN_ON_THE_HOST
    measure = staticmethod(feature_clustering)


class HyperplaneVariation(PairRegularizer):
    """Penalize changes of the plane between two classes when their images are redrawn: ``weight * (2 R_HV)^2``.

    Args:
        weight: factor of the measure; 1 in the authors' code, which calls this feature clustering.
    """

    exemptions: ClassVar = DRAWN_ON_THE_HOST
    measure = staticmethod(hyperplane_variation)


class WeightClustering(Regularizer):
    """Pull together the weights of tasks that adapt in parallel: ``weight * sum_f ||w_f - m_f||^2 / ||m_f||^2``.

    ``w_f`` are the filters of convolutions and the rows of linear layers of one task, ``m_f`` their detached means over
    the tasks of the meta-batch. The paper penalizes a filter-normalized distance and, as far as reported, gives neither
    its exact form nor the weight; here it is the square, normalized by filter as in Li et al. (2018). It acts only in
    the inner loop of ``objective=reptile``: the outer loss treats the adapted weights as constants, so a term in it
    would have no gradient.

    Args:
        weight: factor of the distance.
    """

    on_weights = True

    def forward(self, weights: dict[str, Tensor], mean: dict[str, Tensor]) -> Tensor:
        """Return the term ``(t,)`` of each task, for weights ``(t, ...)`` and their ``mean`` over tasks, by name."""
        terms = []
        for name, centre in mean.items():
            gap = (weights[name] - centre).flatten(2).square().sum(2)
            terms.append((gap / (centre.flatten(1).square().sum(1) + 1e-12)).sum(1))
        return self.weight * reduce(torch.add, terms)
