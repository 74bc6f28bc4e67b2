"""Meta-batch normalization, MetaBN (Bronskill et al. 2020, Section 4.1; Triantafillou et al. 2020)."""

from __future__ import annotations

from metafew.norms.norm import Moments, Norm, context_moments


class MetaBatchNorm(Norm):
    """Moments of a task's context for context and targets alike, in training and evaluation.

    Args:
        channels: number of channels.
        eps: added to the variance.
    """

    def pooled_moments(self, context: int, rows: int) -> bool:
        """Return whether all rows are context."""
        return context == rows

    def moments(self, own: Moments, context: int) -> Moments:
        """Return moments ``(t, 1, c)``, the same for all rows of a task."""
        return context_moments(own, context)
