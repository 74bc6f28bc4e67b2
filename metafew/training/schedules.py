"""Learning-rate schedules that torch does not provide."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from metafew.errors import UsageError

log = logging.getLogger(__name__)


def piecewise(optimizer: Optimizer, steps: int, factors: Sequence[float], since: Sequence[float]) -> LambdaLR:
    """Return a schedule that multiplies the initial learning rate by ``factors[i]`` from step ``since[i] * steps`` on.

    Args:
        optimizer: the optimizer.
        steps: number of training steps.
        factors: factors of the initial learning rate.
        since: the start of each factor as a fraction of ``steps``, increasing from 0.

    Raises:
        UsageError: if ``since`` does not have one increasing fraction per factor.
    """
    if len(factors) != len(since) or list(since) != sorted(since) or list(since[:1]) != [0]:
        raise UsageError(
            f"expected schedule.since to be one increasing fraction from 0 for each of the {len(factors)} "
            f"schedule.factors, got {list(since)}: type schedule.since=[0,0.5] schedule.factors=[1,0.1]"
        )
    starts = [round(fraction * steps) for fraction in since]
    return LambdaLR(optimizer, lambda step: factors[bisect_right(starts, step) - 1])


def follow(checkpoint: dict, make_optimizer: Callable, make_schedule: Callable) -> None:
    """Set the learning rate of a checkpoint to the value of this run's schedule at its step; warn if it changes.

    The schedule depends on the step and on ``trainer.max_steps``, which may have been increased.

    Args:
        checkpoint: the checkpoint to be restored; its optimizer and schedule states are changed in place.
        make_optimizer: makes an optimizer from parameter groups.
        make_schedule: makes the schedule from the optimizer.
    """
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]} for _ in groups])
    schedule = make_schedule(optimizer)
    for _ in range(checkpoint["global_step"]):
        optimizer.step()
        schedule.step()
    for group, now in zip(groups, schedule.get_last_lr(), strict=True):
        before, group["lr"] = group["lr"], now
    if before != now:
        log.warning(
            "the learning rate after step %d was %g and continues at %g, the value of the schedule for the current "
            "trainer.max_steps",
            *(checkpoint["global_step"], before, now),
        )
    checkpoint["lr_schedulers"] = [schedule.state_dict()]
