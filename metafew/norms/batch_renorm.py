"""Batch renormalization, BRN (Ioffe 2017)."""

from __future__ import annotations

import math
from typing import ClassVar

from metafew.config.option_values import check_range
from metafew.norms.norm import Moments
from metafew.norms.running import GroupedNorm


class BatchRenorm(GroupedNorm):
    """Moments of the batch in training, corrected towards the running moments; running moments in evaluation.

    In training, with ``s = sqrt(var + eps)`` of the batch (B) and of the running moments (r)::

        y = weight * ((x - mean_B) / s_B * r + d) + bias,
        r = clip(s_B / s_r, 1 / r_max, r_max),    d = clip((mean_B - mean_r) / s_r, -d_max, d_max)

    and no gradient passes through r and d. Ioffe widens both bounds during training, from 1 to 3 and from 0 to 5. Here
    they are constant, at their final values, as neither paper gives a schedule for meta-training.

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step in the running moments.
        over: ``apart`` or ``joined``, as in :class:`~metafew.norms.batch.BatchNorm`.
        r_max: bound of the correction of the scale, at least 1.
        d_max: bound of the correction of the mean.
    """

    exemptions: ClassVar = {"gradients_in_training": "no gradient passes through r and d"}

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        over: str = "apart",
        r_max: float = 3.0,
        d_max: float = 5.0,
    ):
        super().__init__(channels, eps, momentum, over)
        check_range("norm.r_max", r_max, 1, math.inf)
        check_range("norm.d_max", d_max, 0, math.inf)
        self.r_max, self.d_max = r_max, d_max

    def moments(self, own: Moments | None, context: int) -> Moments:
        """Return the moments with which plain normalization gives the corrected result."""
        mean, var = super().moments(own, context)
        if own is None:
            return mean, var
        std, running_std = (var + self.eps).sqrt(), (self.running_var + self.eps).sqrt()
        r = (std.detach() / running_std).clamp(1 / self.r_max, self.r_max)
        d = ((mean.detach() - self.running_mean) / running_std).clamp(-self.d_max, self.d_max)
        # (x - mean) r / s + d = (x - (mean - d s / r)) / (s / r)
        corrected_std = std / r
        return mean - d * corrected_std, corrected_std.square() - self.eps
