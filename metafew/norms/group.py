"""Group normalization, GN (Wu and He 2018)."""

from __future__ import annotations

from metafew.errors import UsageError
from metafew.norms.norm import Moments, Norm, pool


class GroupNorm(Norm):
    """Moments of each image over positions and the channels of a group; one group is layer norm.

    Args:
        channels: number of channels.
        eps: added to the variance.
        groups: number of groups, a divisor of ``channels``. Wu and He use 32 in networks with more channels; 4 leaves
            16 of conv4's 64 channels in each.
    """

    per_image = True

    def __init__(self, channels: int, eps: float = 1e-5, groups: int = 4):
        super().__init__(channels, eps)
        if groups < 1 or channels % groups:
            raise UsageError(f"expected norm.groups to divide {channels} channels, got {groups}: type norm.groups=1")
        self.groups = groups

    def moments(self, own: Moments, context: int) -> Moments:
        """Return moments ``(t, n, c)``."""
        mean, var = (part.unflatten(2, (self.groups, -1)) for part in own)
        size = own[0].shape[2] // self.groups
        mean, var = (part.expand(*part.shape[:3], size).flatten(2) for part in pool(mean, var, dim=3))
        return mean, var
