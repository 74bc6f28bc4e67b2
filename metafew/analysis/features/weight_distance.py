"""The distance between backbone weights before and after adaptation to a task (Goldblum et al. 2020)."""

from __future__ import annotations

from typing import TypeGuard

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.heads.adapting import AdaptingHead
from metafew.heads.fast_weights import BACKBONE
from metafew.heads.head import Head
from metafew.heads.inner import Weights
from metafew.objectives.regularizers import WeightClustering


def adapts_by_gradient(head: Head) -> TypeGuard[AdaptingHead]:
    """Return whether ``head`` adapts weights of the backbone by gradient steps, and to the support set only."""
    return isinstance(head, AdaptingHead) and head.adapts_backbone and not head.transductive


def adaptation_distances(head: AdaptingHead, backbone: Backbone, support: Labelled, way: int) -> list[dict[str, float]]:
    """Return, for each task, the distances between its weights before and after adaptation as in evaluation."""
    return [distances(start, end) for start, end in head.adaptation(backbone, support, way)]


def distances(start: Weights, end: Weights) -> dict[str, float]:
    """Return the filter-normalised distance of each layer by name, and of all layers under ``all``.

    ``sqrt(sum_f |w_f - v_f|^2 / (|v_f|^2 + 1e-12))``, where ``f`` ranges over the filters of convolutions and the rows
    of linear layers of the backbone, and ``v`` and ``w`` are the weights before and after adaptation. It is invariant
    to the scale of filters (Li et al. 2018). ``regularizer=weight_clustering`` adds its square, with the mean over
    tasks as ``v``. Norms, biases and the output layer, which may start at 0, are excluded.
    """
    square = WeightClustering(1.0)
    names = [name for name, value in start.items() if name.startswith(BACKBONE) and value.ndim > 1]
    squares = {
        name.removeprefix(BACKBONE).removesuffix(".weight"): float(
            square({name: end[name].double().unsqueeze(0)}, {name: start[name].double()})
        )
        for name in names
    }
    return {name: value**0.5 for name, value in squares.items()} | {"all": sum(squares.values()) ** 0.5}
