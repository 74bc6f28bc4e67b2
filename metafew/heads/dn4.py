"""Deep nearest neighbour networks, DN4 (Li et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.config.option_values import check_integer
from metafew.heads.cosine import direction
from metafew.heads.maps import MapHead


class DN4(MapHead):
    """Each position of a query votes for a class by its cosines to the ``k`` nearest positions of the class.

    ``logit_m = sum_i sum_{j=1..k} cos(x_i, y_mij)`` over the positions ``i`` of a query, where ``x_i`` are the channels
    at a position and ``y_mij`` the ``k`` most similar ones among the positions of all support images of class ``m``.
    A class with fewer than ``k`` positions counts ``k`` times the mean over those it has. Positions without direction
    have a cosine of 0.

    The networks of Li et al. halve images twice, which leaves 21 x 21 positions of images of 84 pixels; backbones here
    halve them four times, to 5 x 5, and images of 28 pixels to a single position, where the head compares whole images
    by their cosine.

    Args:
        backbone: the backbone; only the shape of its maps is used.
        trained: not used, as there is nothing to train.
        neighbours: ``k``; Li et al. use 3.
    """

    def __init__(self, backbone: Backbone, trained: bool, neighbours: int = 3):
        super().__init__(backbone, "dn4")
        check_integer("head.neighbours", neighbours, 1, example=3)
        self.neighbours = neighbours

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return sums of cosines ``(t, q, w)``."""
        cosines = self.positions(query) @ self.positions(support).mT  # (t, q p, s p)
        classes = labels.repeat_interleave(cosines.shape[-1] // labels.shape[-1], 1).unsqueeze(1)
        nearest = min(self.neighbours, cosines.shape[-1])
        votes = []
        for m in range(way):
            found = cosines.masked_fill(classes != m, -torch.inf).topk(nearest).values
            present = found != -torch.inf
            votes.append(found.where(present, 0).sum(-1) / present.sum(-1))
        return self.neighbours * torch.stack(votes, -1).unflatten(1, (query.shape[1], -1)).sum(2)

    def positions(self, features: Tensor) -> Tensor:
        """Return the channels at each position of all images of a task, of unit length, ``(t, n p, c)``."""
        return direction(self.maps(features).flatten(-2).mT.flatten(1, 2))
