"""Reptile's outer loop (Nichol et al. 2018), and weight clustering (Goldblum et al. 2020)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from metafew.backbones.backbone import Backbone
from metafew.distributed.collective import mean_over_processes
from metafew.episode import Episode
from metafew.errors import UsageError
from metafew.heads.fast import Bound, Task, by_autograd, detached, embed
from metafew.heads.inner import Weights
from metafew.heads.reptile import Reptile as ReptileHead
from metafew.norms.running import RunningNorm
from metafew.objectives.objective import Objective, one_rate

log = logging.getLogger(__name__)


class Reptile(Objective):
    """Move the weights towards the mean of those that fit each task: ``theta <- theta + lr mean_i(theta_i - theta)``.

    ``theta_i`` are the weights after the inner steps of ``head=reptile`` on the support set of task ``i``. The step is
    the gradient step of plain SGD on ``1/2 mean_i ||theta - stopgrad(theta_i)||^2``, so that optimizers, schedules and
    processes are those of any other training. The value of the loss is that of the last inner step, before it.

    Tasks advance in lock step. With ``regularizer=weight_clustering`` each inner loss but the first also draws the
    weights of convolutions and linear layers towards their mean over the tasks. TaskNorm's own scalars are not learned:
    no task adapts them.

    Args:
        regularizer: ``none`` or ``weight_clustering``.
    """

    needs_queries = False

    def prepare(self, backbone: Backbone, head: nn.Module) -> None:
        """Freeze what no task adapts."""
        if self.regularizer.on_features:
            raise UsageError(
                "objective=reptile has no loss on features: type regularizer=weight_clustering or regularizer=none"
            )
        if not isinstance(head, ReptileHead):
            raise UsageError("objective=reptile trains through the inner loop of head=reptile: type head=reptile")
        one_rate(head)
        for name, p in backbone.named_parameters():
            p.requires_grad_(p.requires_grad and name in head.names)

    def advise(self, optimizer: Optimizer) -> None:
        """Warn unless the step is the published one."""
        group = optimizer.param_groups[0]
        if not isinstance(optimizer, SGD) or group["momentum"] or group["weight_decay"]:
            log.warning(
                "objective=reptile is a step of plain SGD towards adapted weights, which momentum, weight decay or "
                "Adam make something else: type optimizer=plain_sgd"
            )

    def forward(self, backbone: Backbone, head: ReptileHead, batch: list[Episode]) -> Tensor:
        """Return the loss of ``batch``, of which only the support sets are used."""
        bound = Bound(backbone)
        tasks = [
            Task(images, labels, episode.way, index)
            for episode in batch
            for images, labels, index in zip(*episode.support, episode.index.tolist(), strict=True)
        ]
        with torch.no_grad():
            weights = [detached(head.start(bound, task)) for task in tasks]
        states = [detached(head.first_state(value)) for value in weights]
        parameters = dict(bound.named_parameters()) | dict(head.output.named_parameters())
        theta = {name: parameters[name] for name in weights[0] if head.lasts(name)}
        shared = [name for name, p in theta.items() if p.ndim > 1]
        losses = [torch.zeros(())] * len(tasks)
        for step in range(head.steps):
            mean = consensus(weights, shared) if self.regularizer.on_weights and step else None
            for i, task in enumerate(tasks):
                loss = partial(self._inner, head, bound, task, step, mean)
                grads, losses[i] = by_autograd(loss, weights[i], graph=False)
                with torch.no_grad():
                    rates = head.rates.at(step, head.lrs[0])
                    weights[i], states[i] = head.rule(detached(weights[i]), grads, states[i], rates)
        head.keep(states)
        self._record(bound, tasks, weights)
        squares = [sum((p - end[name]).square().sum() for name, p in theta.items()) for end in weights]
        surrogate = 0.5 * torch.stack(squares).mean()
        self.latest = []
        return surrogate + (self.noted(torch.stack(losses)).mean() - surrogate).detach()

    def _inner(self, head: ReptileHead, bound: Bound, task: Task, step: int, mean: Weights | None, weights: Weights):
        """Return the inner loss of a task."""
        loss = head.loss(bound, task, step, weights)
        return loss if mean is None else loss + self.regularizer(weights, mean)

    @staticmethod
    @torch.no_grad()
    def _record(bound: Bound, tasks: Sequence[Task], weights: Sequence[Weights]) -> None:
        """Let running moments, if there are any, see the support sets under the adapted weights."""
        if any(isinstance(norm, RunningNorm) for norm in bound.backbone.norms):
            for task, value in zip(tasks, weights, strict=True):
                embed(bound, value, task.images)


def consensus(weights: Sequence[Weights], names: Sequence[str]) -> Weights:
    """Return the mean over tasks, of all processes, of the weights ``names``."""
    means = {name: torch.stack([value[name] for value in weights]).mean(0) for name in names}
    flat = mean_over_processes(torch.cat([mean.flatten() for mean in means.values()]))
    parts = flat.split([mean.numel() for mean in means.values()])
    return {name: part.view_as(means[name]) for name, part in zip(names, parts, strict=True)}
