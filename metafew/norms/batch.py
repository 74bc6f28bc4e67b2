"""Conventional batch normalization, CBN (Ioffe and Szegedy 2015; Bronskill et al. 2020, Section 3.1)."""

from __future__ import annotations

from metafew.norms.running import GroupedNorm


class BatchNorm(GroupedNorm):
    """Moments of the batch in training, running moments in evaluation.

    In training, a batch belongs to one task: with ``over="apart"``, context rows are normalized by the moments of the
    task's context and target rows by those of its targets, as in two separate passes; with ``over="joined"``, all rows
    are normalized by the moments of all rows, as in one pass over the concatenation.

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step in the running moments.
        over: ``apart`` or ``joined``.
    """
