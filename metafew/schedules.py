"""Learning-rate schedules that torch does not have."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metafew.errors import UsageError


def piecewise(optimizer: Optimizer, steps: int, factors: Sequence[float], since: Sequence[float]) -> LambdaLR:
    """Return a schedule that multiplies the learning rate by ``factors[i]`` from step ``since[i] * steps`` on.

    Args:
        optimizer: whose learning rate it is.
        steps: steps of the whole training.
        factors: what the first learning rate is multiplied by.
        since: when each factor begins, as a fraction of ``steps``: rising, from 0.
    """
    if len(factors) != len(since) or list(since) != sorted(since) or list(since[:1]) != [0]:
        raise UsageError(
            f"schedule.since wants one rising fraction from 0 for each of the {len(factors)} schedule.factors, not "
            f"{list(since)}: type schedule.since=[0,0.5] schedule.factors=[1,0.1]"
        )
    starts = [round(fraction * steps) for fraction in since]
    return LambdaLR(optimizer, lambda step: factors[bisect_right(starts, step) - 1])
