"""Running moments: gathered during a step, taken over once when the step is complete."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from metafew.norms.norm import Norm
from metafew.norms.scope import current


class RunningNorm(Norm):
    """A scheme that keeps moving averages of the moments it met in training.

    The averages change once a step, in :func:`commit`, by the mean over all tasks of the meta-batch and all
    processes of the moments of each task: ``running <- (1 - momentum) running + momentum mean``.

    Args:
        channels: number of channels.
        eps: added to the variance.
        momentum: weight of the newest step.
    """

    def __init__(self, channels: int, eps: float, momentum: float):
        super().__init__(channels, eps)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.pending: Tensor | None = None

    def record(self, mean: Tensor, var: Tensor) -> None:
        """Keep the moments of each task for :func:`commit`, when the pass under way asks for it.

        Args:
            mean: ``(t, n or 1, c)`` means that normalize the rows of each task; rows are weighted alike.
            var: variances of the same shape.
        """
        if self.training and current().record:
            moments = torch.stack([mean.detach().mean(1).sum(0), var.detach().mean(1).sum(0)])
            tasks = moments.new_full((2, 1), mean.shape[0])
            pending = torch.cat([moments, tasks], 1)
            self.pending = pending if self.pending is None else self.pending + pending

    def absorb(self, total: Tensor) -> None:
        """Move the running moments towards the mean of ``total``: ``(2, c + 1)`` sums, the count in the last column."""
        mean, var = (total[:, :-1] / total[:, -1:]).to(self.running_mean.dtype)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        self.pending = None


@torch.no_grad()
def commit(model: nn.Module) -> None:
    """Let all running moments of ``model`` take over what this step recorded, over all processes."""
    norms = [m for m in model.modules() if isinstance(m, RunningNorm) and m.pending is not None]
    if not norms:
        return
    total = torch.cat([norm.pending for norm in norms], 1)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
    for norm, part in zip(norms, total.split([norm.pending.shape[1] for norm in norms], 1), strict=True):
        norm.absorb(part)
