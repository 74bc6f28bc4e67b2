"""Transductive batch normalization, TBN: the norm of MAML's published results (Bronskill et al. 2020, Section 3.1)."""

from __future__ import annotations

from metafew.norms.running import GroupedNorm


class Transductive(GroupedNorm):
    """Moments of the batch, also in evaluation: the targets of a task are normalized together.

    Predictions then depend on the other queries of the batch. Running moments are kept, so that a checkpoint can be
    tested with ``norm=batch`` or ``norm=reptile``.

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step in the running moments.
        over: ``apart`` or ``joined``, as in :class:`~metafew.norms.batch.BatchNorm`.
    """

    transductive = True
    evaluates_with_running = False
