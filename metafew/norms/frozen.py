"""Frozen batch normalization: the Baseline of Bronskill et al. (2020), Table 2."""

from __future__ import annotations

from metafew.norms.norm import Moments
from metafew.norms.running import RunningNorm


class FrozenNorm(RunningNorm):
    """Running moments of an earlier training run with ``norm=batch``, never updated.

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    fixed_moments = True

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(channels, eps, momentum=0.0)

    def requires_running_moments(self, fit: bool) -> bool:
        """Return True, as training does not update them."""
        return True

    def moments(self, own: Moments | None, context: int) -> Moments:
        """Return the running moments."""
        return self.running_mean, self.running_var
