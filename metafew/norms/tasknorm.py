"""TaskNorm-I (Bronskill et al. 2020, Eqs. 9-11)."""

from __future__ import annotations

from metafew.norms.alpha import Alpha, blend
from metafew.norms.norm import Moments, Norm, context_moments


class TaskNorm(Norm):
    """Blend the moments of a task's context with those of the image being normalized, channel by channel.

    Context and target rows are treated in the same way: a target depends on the context and itself, never on another
    target. Nothing is detached, so the loss on targets has a gradient with respect to the activations of the context.
    Variances are population variances, as in the paper (the authors' code uses unbiased variances, which are undefined
    for a single position).

    Args:
        channels: number of channels.
        eps: added to the variance.
        alpha: ``functional`` or ``independent`` (:class:`~metafew.norms.alpha.Alpha`).
        channelwise: learn one alpha per channel instead of one per layer.
    """

    def __init__(self, channels: int, eps: float = 1e-5, alpha: str = "functional", channelwise: bool = False):
        super().__init__(channels, eps)
        self.alpha = Alpha(alpha, channels if channelwise else None)

    def moments(self, own: Moments, context: int) -> Moments:
        """Return moments ``(t, n, c)``, a blend for every image."""
        return blend(self.alpha(context), context_moments(own, context), own)
