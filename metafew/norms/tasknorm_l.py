"""TaskNorm-L (Bronskill et al. 2020, Eqs. 9-11)."""

from __future__ import annotations

from metafew.norms.alpha import blend
from metafew.norms.norm import Moments, context_moments, pool
from metafew.norms.tasknorm import TaskNorm


class TaskNormL(TaskNorm):
    """Blend the moments of a task's context with those of the image being normalized, over all its channels.

    As :class:`~metafew.norms.tasknorm.TaskNorm`, with layer normalization's moments in the place of instance
    normalization's; the arguments are the same.
    """

    def moments(self, own: Moments, context: int) -> Moments:
        """Return moments ``(t, n, c)``: a blend for every image."""
        return blend(self.alpha(context), context_moments(own, context), pool(*own, dim=2))
