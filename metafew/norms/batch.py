"""Conventional batch normalization, CBN (Ioffe and Szegedy 2015; Bronskill et al. 2020, Section 3.1)."""

from __future__ import annotations

import torch

from metafew.errors import UsageError
from metafew.norms.norm import Moments, pool
from metafew.norms.running import RunningNorm


class BatchNorm(RunningNorm):
    """Moments of the batch in training, running moments in evaluation.

    In training a batch is a part of one task, never of several: with ``over="apart"`` context rows are normalized
    by the task's context rows and target rows by its target rows, as when the two are passed one after the
    other; with ``over="joined"`` both by the moments of all rows together, as when they are concatenated. The
    moments that feed the running averages are means over a task's rows (of both groups, by their sizes).

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step in the running moments.
        over: ``apart`` or ``joined``.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, over: str = "apart"):
        super().__init__(channels, eps, momentum)
        if over not in ("apart", "joined"):
            raise UsageError(f"norm.over is 'apart' or 'joined', not '{over}': type norm.over=apart")
        self.over = over

    @property
    def blind(self) -> bool:
        """Whether the running moments are used: in evaluation."""
        return not self.training

    def moments(self, own: Moments | None, context: int) -> Moments:
        """Return the moments of the groups in training, the running moments in evaluation."""
        if own is None:
            return self.running_mean, self.running_var
        mean, var = own
        rows = mean.shape[1]
        groups = [rows] if self.over == "joined" else [context, rows - context]
        pooled = [
            [part.expand(-1, size, -1) for part in pool(m, v)]
            for m, v, size in zip(mean.split(groups, 1), var.split(groups, 1), groups, strict=True)
            if size
        ]
        mean, var = (torch.cat(parts, 1) for parts in zip(*pooled, strict=True))
        self.record(mean, var)
        return mean, var
