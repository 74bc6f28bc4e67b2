"""Instance normalization, IN (Ulyanov et al. 2016)."""

from __future__ import annotations

from metafew.norms.norm import Moments, Norm


class InstanceNorm(Norm):
    """Moments of each channel of each image, over its positions.

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    per_image = True
    needs_positions = True

    def moments(self, own: Moments, context: int) -> Moments:
        """Return moments ``(t, n, c)``."""
        return own
