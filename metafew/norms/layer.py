"""Layer normalization, LN (Ba et al. 2016)."""

from __future__ import annotations

from metafew.norms.norm import Moments, Norm, pool


class LayerNorm(Norm):
    """Moments of each image, over its channels and positions.

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    per_image = True

    def moments(self, own: Moments, context: int) -> Moments:
        """Return moments ``(t, n, 1)``."""
        return pool(*own, dim=2)
