"""Batch normalization over all tasks of the meta-batch, as in MetaOptNet's training (Lee et al. 2019)."""

from __future__ import annotations

from metafew.distributed.collective import mean_over_processes
from metafew.norms.norm import Moments
from metafew.norms.running import GroupedNorm


class BatchShared(GroupedNorm):
    """Moments of the context rows of all tasks, and of all target rows, in training; running moments in evaluation.

    The tasks of a meta-batch are treated as one batch, once for support sets and once for queries. Its moments are over
    all processes, with gradient. All tasks must have the same way and shot. Running moments, as in every scheme, are
    means over tasks of per-task moments, so their variance excludes the variance between task means.

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step in the running moments.
    """

    couples_tasks = True

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(channels, eps, momentum, over="apart")

    def moments(self, own: Moments | None, context: int) -> Moments:
        """Return moments ``(1, n, c)`` shared by all tasks in training, the running moments in evaluation."""
        mean, var = super().moments(own, context)
        if own is None:
            return mean, var
        # Groups have equal sizes, so the moments of their union follow from theirs.
        shared_mean = mean_over_processes(mean.mean(0, keepdim=True))
        shared_var = mean_over_processes((var + (mean - shared_mean).square()).mean(0, keepdim=True))
        return shared_mean, shared_var
