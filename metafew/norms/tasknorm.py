"""TaskNorm-I (Bronskill et al. 2020, Eqs. 9-11)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafew.norms.norm import Moments, Norm, pool


class TaskNorm(Norm):
    """Blend the moments of a task's context with those of the image being normalized.

    With context moments ``mu_D, var_D`` (over context rows and positions, per channel) and the image's own
    ``mu_x, var_x`` (over positions)::

        alpha = sigmoid(scale * |D| + offset),        |D| = number of context images
        mu    = alpha mu_D + (1 - alpha) mu_x
        var   = alpha (var_D + (mu_D - mu)^2) + (1 - alpha) (var_x + (mu_x - mu)^2)

    Context and target rows are treated alike, so a target sees the context and itself, never another target. One
    learned ``scale`` and ``offset`` a layer, both from 0 (alpha = 1/2), kept out of weight decay. Nothing is
    detached: the loss on targets reaches the context's activations. Variances are population variances, as in the
    paper (the authors' code uses unbiased ones, which are undefined for one position).

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    undecayed = ("scale", "offset")

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(channels, eps)
        self.scale = nn.Parameter(torch.zeros(()))
        self.offset = nn.Parameter(torch.zeros(()))

    def alpha(self, context: int) -> Tensor:
        """Return the weight of the context's moments for ``context`` images."""
        return torch.sigmoid(self.scale * context + self.offset)

    def moments(self, own: Moments, context: int) -> Moments:
        """Return moments ``(t, n, c)``: a blend for every image."""
        own_mean, own_var = own
        mean, var = pool(own_mean[:, :context], own_var[:, :context])
        alpha = self.alpha(context)
        gap = mean - own_mean
        blend = own_mean + alpha * gap
        # alpha (gap - alpha gap)^2 + (1 - alpha) (alpha gap)^2 = alpha (1 - alpha) gap^2
        return blend, own_var + alpha * (var - own_var) + alpha * (1 - alpha) * gap.square()
