"""TaskNorm-r, the ablation of Bronskill et al. (2020) that blends with running moments."""

from __future__ import annotations

from metafew.norms.alpha import Alpha, blend
from metafew.norms.norm import Moments, context_moments
from metafew.norms.running import RunningNorm, group_moments


class TaskNormR(RunningNorm):
    """Blend the moments of a task's context with the running moments of batch norm, over all training tasks.

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step in the running moments.
        alpha: ``functional`` or ``independent`` (:class:`~metafew.norms.alpha.Alpha`).
        channelwise: learn one alpha per channel instead of one per layer.
    """

    fixed_moments = False

    def __init__(
        self,
        channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        alpha: str = "functional",
        channelwise: bool = False,
    ):
        super().__init__(channels, eps, momentum)
        self.alpha = Alpha(alpha, channels if channelwise else None)

    def moments(self, own: Moments, context: int) -> Moments:
        """Return moments ``(t, 1, c)``, the same for all rows of a task."""
        self.record(*group_moments(own, context, "apart"))
        return blend(self.alpha(context), context_moments(own, context), (self.running_mean, self.running_var))
