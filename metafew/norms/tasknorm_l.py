"""TaskNorm-L (Bronskill et al. 2020, Eqs. 9-11)."""

from __future__ import annotations

from metafew.norms.alpha import blend
from metafew.norms.norm import Moments, context_moments, pool
from metafew.norms.tasknorm import TaskNorm


class TaskNormL(TaskNorm):
    """Blend the moments of a task's context with those of the image being normalized, over all its channels.

    Like :class:`~metafew.norms.tasknorm.TaskNorm`, but with the moments of layer normalization instead of instance
    normalization. The arguments are the same.
    """

    def moments(self, own: Moments, context: int) -> Moments:
        """Return moments ``(t, n, c)``, a blend for every image."""
        return blend(self.alpha(context), context_moments(own, context), pool(*own, dim=2))
