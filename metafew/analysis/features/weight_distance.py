"""How far weights go from their common start when a head adapts them to a task (Goldblum et al. 2020)."""

from __future__ import annotations

from torch import nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.heads.fast import BACKBONE
from metafew.heads.inner import Weights
from metafew.heads.maml import MAML
from metafew.objectives.regularizers import WeightClustering


def travels(head: nn.Module) -> bool:
    """Tell whether ``head`` adapts weights of the backbone by gradient steps."""
    return isinstance(head, MAML) and head.adapts_backbone


def travel(head: MAML, backbone: Backbone, support: Labelled, way: int) -> list[dict[str, float]]:
    """Return, for each task, the distances that adaptation as in evaluation makes its weights go."""
    return [distances(start, end) for start, end in head.adaptation(backbone, support, way)]


def distances(start: Weights, end: Weights) -> dict[str, float]:
    """Return the filter-normalised distance of each layer, by its name, and under ``all`` that of all together.

    ``sqrt(sum_f |w_f - v_f|^2 / (|v_f|^2 + 1e-12))`` over the filters ``f`` of convolutions and rows of linear layers
    of the backbone, from the weights ``v`` before adaptation to ``w`` after: a filter and its scale count as one
    (Li et al. 2018). Its square is what ``regularizer=weight_clustering`` adds, there measured from the mean over
    tasks. Norms, biases and the output layer, which may start at 0, are left out.
    """
    square = WeightClustering(1.0)
    names = [name for name, value in start.items() if name.startswith(BACKBONE) and value.ndim > 1]
    squares = {
        name.removeprefix(BACKBONE).removesuffix(".weight"): float(
            square({name: end[name].double()}, {name: start[name].double()})
        )
        for name in names
    }
    return {name: value**0.5 for name, value in squares.items()} | {"all": sum(squares.values()) ** 0.5}
