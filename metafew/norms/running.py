"""Running moments: recorded during a step, and updated once at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.config.option_values import check_choice, check_integer
from metafew.distributed.collective import distributed
from metafew.norms.norm import Moments, Norm, pool
from metafew.norms.scope import current, rows


class RunningNorm(Norm):
    """A scheme that keeps moving averages of the moments seen in training.

    They are updated once per step, in :func:`commit`: ``running <- (1 - momentum) running + momentum mean``, where the
    mean of per-task moments is over the meta-batch and all processes. The moments of a task are the mean over groups of
    rows, weighted by their sizes; variances are population variances within a group, and exclude the variance between
    groups.

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step.
    """

    evaluates_with_running = True
    """Whether evaluation uses the running moments."""
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float, momentum: float):
        super().__init__(channels, eps)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.pending: Tensor | None = None

    @property
    def fixed_moments(self) -> bool:
        """Whether only running moments are used: in evaluation, if the scheme evaluates with them."""
        return self.evaluates_with_running and not self.training

    def requires_running_moments(self, fit: bool) -> bool:
        """Return whether evaluation uses running moments and this run has no training that provides them."""
        return self.evaluates_with_running and not fit

    def record(self, mean: Tensor, var: Tensor) -> Moments:
        """Record the moments of each task for :func:`commit`, if the scope requests it, and return them unchanged.

        Args:
            mean: means ``(t, n, c)`` of the groups of rows in each task, one per row, or one per group if groups are
                equally large.
            var: variances of the same shape.
        """
        tasks, _, ledger, share = current()
        if self.training and ledger is not False:
            moments = torch.stack([mean, var]).detach().mean(2).sum(1)
            sums = share * F.pad(moments, (0, 1), value=tasks)
            if ledger is True:
                self.gather(sums)
            else:
                ledger[self] = ledger[self] + sums if self in ledger else sums
        return mean, var

    def gather(self, sums: Tensor) -> None:
        """Add to the sums over tasks of this step: moments ``(2, c + 1)``, number of tasks in the last column."""
        self.pending = sums if self.pending is None else self.pending + sums

    def absorb(self, total: Tensor) -> None:
        """Update the running moments from sums over tasks ``(2, c + 1)``, number of tasks in the last column."""
        running = torch.stack([self.running_mean, self.running_var])
        mean, var = kept_finite((total[:, :-1] / total[:, -1:]).to(running.dtype), running)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        self.pending = None


class GroupedNorm(RunningNorm):
    """A scheme that trains with the moments of groups of rows of a task.

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step in the running moments.
        over: ``apart`` normalizes context rows by the moments of the context and target rows by those of the targets;
            ``joined`` normalizes all rows by the moments of all rows.
    """

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1, over: str = "apart"):
        super().__init__(channels, eps, momentum)
        check_choice("norm.over", over, ("apart", "joined"))
        self.over = over

    @property
    def context_and_targets_separate(self) -> bool:
        """Whether context rows and target rows each use their own moments."""
        return self.over == "apart" and self.uses_batch_moments

    @property
    def context_depends_on_targets(self) -> bool:
        """Whether context rows use moments of all rows."""
        return self.over == "joined" and self.uses_batch_moments

    @property
    def uses_batch_moments(self) -> bool:
        """Whether rows are normalized by the moments of their group in the current mode."""
        return self.training or not self.evaluates_with_running

    def moments(self, own: Any, context: int) -> Moments:
        """Return the moments of the groups ``(t, n, c)``, or the running moments where these are used."""
        if own is None:
            return self.running_mean, self.running_var
        return self.record(*group_moments(own, context, self.over))

    def pooled_moments(self, context: int, rows: int) -> bool:
        """Return whether all rows of a task are one group."""
        return self.uses_batch_moments and (context == rows or self.over == "joined")


def group_moments(own: Moments, context: int, over: str) -> Moments:
    """Return the moments ``(t, n, c)`` of the group of every row: context, targets or, if ``joined``, all rows."""
    rows = own[0].shape[1]
    if rows == 1:
        return own
    sizes = [rows] if over == "joined" else [size for size in (context, rows - context) if size]
    pooled = [pool(*parts) for parts in zip(*(part.split(sizes, 1) for part in own), strict=True)]
    mean, var = (
        torch.cat([part.expand(-1, size, -1) for part, size in zip(parts, sizes, strict=True)], 1)
        for parts in zip(*pooled, strict=True)
    )
    return mean, var


def kept_finite(new: Tensor, old: Tensor) -> Tensor:
    """Return ``new``, or ``old`` if any value in ``new`` overflowed, as float16 training skips such steps."""
    return torch.where(new.isfinite().all(), new, old)


@contextmanager
def task_scope(n_tasks: int, n_context: int) -> Iterator[None]:
    """Divide the rows of all batches inside into tasks, so that schemes can be used in your own training loop.

    A batch ``(n_tasks * n, ...)`` holds ``n`` rows of each task, task by task. The first ``n_context`` of these are its
    context, from which norms may take moments, and the others its targets. Running moments are updated when the scope
    ends, once for all passes in it, by the mean over their tasks (and over all processes)::

        for images, labels in episodes:
            with metafew.task_scope(n_tasks=4, n_context=25):
                loss = criterion(network(images), labels)
            loss.backward()

    Args:
        n_tasks: number of tasks in a batch.
        n_context: number of context rows of each task.

    Raises:
        metafew.errors.UsageError: if these are not positive integers.
    """
    check_integer("n_tasks", n_tasks, 1)
    check_integer("n_context", n_context, 1)
    recorded: dict[RunningNorm, Tensor] = {}
    with rows(n_tasks, n_context, recorded):
        yield
    for norm, sums in recorded.items():
        norm.gather(sums)
    commit(nn.ModuleList(recorded))


@torch.no_grad()
def commit(model: nn.Module) -> None:
    """Update the running state of every module of ``model`` that recorded something in this step.

    Such a module has sums over tasks and their number in ``pending``; ``absorb`` receives the total over all processes.
    """
    modules = recorders(model)
    if not modules:
        return
    total = torch.cat([module.pending.flatten() for module in modules])
    if distributed():
        dist.all_reduce(total)
    for module, part in zip(modules, total.split([m.pending.numel() for m in modules]), strict=True):
        module.absorb(part.view_as(module.pending))


def recorders(model: nn.Module) -> list[Any]:
    """Return the modules of ``model`` that recorded something for :func:`commit`."""
    return [module for module in model.modules() if getattr(module, "pending", None) is not None]
