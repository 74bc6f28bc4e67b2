"""Reptile's outer loop (Nichol et al. 2018), and weight clustering (Goldblum et al. 2020)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial, reduce
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from metafew.backbones.backbone import Backbone
from metafew.distributed.collective import mean_over_processes
from metafew.episode import Episode
from metafew.errors import UsageError
from metafew.heads.adapting import AdaptingHead
from metafew.heads.fast_weights import FunctionalBackbone, SupportSet, detached
from metafew.heads.head import Head
from metafew.heads.inner import Weights
from metafew.norms.running import RunningNorm
from metafew.objectives.objective import Objective, StepLoss, check_one_rate

log = logging.getLogger(__name__)


class Reptile(Objective):
    """Move the weights towards the mean of those that fit each task: ``theta <- theta + lr mean_i(theta_i - theta)``.

    ``theta_i`` are the weights after the inner steps of ``head=reptile`` on the support set of task ``i``. The step is
    the gradient step of plain SGD on ``1/2 mean_i ||theta - stopgrad(theta_i)||^2``, so that optimizers, schedules and
    ranks work as in any other training. The value of the loss is that before the last inner step.

    Tasks advance in lock step. With ``regularizer=weight_clustering`` each inner loss but the first also draws the
    weights of convolutions and linear layers towards their mean over the tasks. Meta-parameters, such as TaskNorm's
    scalars, are not learned: no task adapts them.

    Args:
        regularizer: ``none`` or ``weight_clustering``.
    """

    needs_queries = False
    regularizes_weights = True
    exemptions: ClassVar = {
        "cuda_graph": "the number of a task determines its minibatches",
        "gradient": "the gradient is that of a distance to adapted weights, not of the value",
    }

    def prepare(self, backbone: Backbone, head: Head) -> None:
        """Freeze what no task adapts.

        Raises:
            UsageError: if the inner loop of ``head`` cannot advance in lock step, or the regularizer takes features or
                has no weights to draw together.
        """
        if self.regularizer.on_features:
            raise UsageError(
                "expected regularizer=none or weight_clustering, got a regularizer of features, and objective=reptile "
                "has no loss on features: type regularizer=weight_clustering or regularizer=none"
            )
        if not head.lock_step:
            raise UsageError(
                f"expected a head with an inner loop that objective=reptile can drive, got {type(head).__name__}: "
                "type head=reptile"
            )
        check_one_rate(head)
        inner = cast(AdaptingHead, head)
        for name, p in backbone.named_parameters():
            p.requires_grad_(p.requires_grad and name in inner.names)
        adapting = [(name, p) for name, p in backbone.named_parameters() if name in inner.names]
        adapting += inner.output.named_parameters()
        if self.regularizer.on_weights and not any(p.ndim > 1 and inner.lasts(name) for name, p in adapting):
            raise UsageError(
                "expected weights of convolutions or linear layers that adapt, which regularizer=weight_clustering "
                "draws together, got none: type regularizer=none, or head.adapt=all head.freeze=[]"
            )

    def advise(self, optimizer: Optimizer) -> None:
        """Log a warning unless the step is the published one."""
        group = optimizer.param_groups[0]
        if not isinstance(optimizer, SGD) or group["momentum"] or group["weight_decay"]:
            log.warning(
                "objective=reptile is a step of plain SGD towards adapted weights, which momentum, weight decay or "
                "Adam would change: type optimizer=plain_sgd"
            )

    def batch_losses(self, backbone: Backbone, head: Head, batch: list[Episode]) -> StepLoss:
        """Return the mean loss of ``batch`` and each task's; only the support sets are used."""
        model, inner = FunctionalBackbone(backbone), cast(AdaptingHead, head)  # as prepare() has checked
        stacks = [
            SupportSet(*part.support, part.way, part.index.tolist())
            for episode in batch
            for part in episode.split(inner.tasks_in_step(backbone, episode.support.images))
        ]
        weights, losses = self._adapt(inner, model, stacks)
        self._record(model, stacks, weights)
        parameters = dict(model.named_parameters()) | dict(inner.output.named_parameters())
        theta = {name: parameters[name] for name in weights[0] if inner.lasts(name)}
        squares = [
            reduce(
                torch.add, ((p - end[name]).square().reshape(len(end[name]), -1).sum(1) for name, p in theta.items())
            )
            for end in weights
        ]
        surrogate = 0.5 * torch.cat(squares).mean()
        return StepLoss(surrogate + (losses.mean() - surrogate).detach(), losses.detach())

    def _adapt(
        self, head: AdaptingHead, model: FunctionalBackbone, stacks: Sequence[SupportSet]
    ) -> tuple[list[Weights], Tensor]:
        """Return the adapted weights of each stack of tasks, and the loss of each task in the last step."""
        with torch.no_grad():
            weights = [detached(head.start(model, tasks)) for tasks in stacks]
        states = [detached(head.first_state(value)) for value in weights]
        shared = [name for name, value in weights[0].items() if head.lasts(name) and value.ndim > 2]
        losses = [tasks.images.new_zeros(len(tasks.images)) for tasks in stacks]
        for step in range(head.steps):
            mean = mean_over_tasks(weights, shared) if self.regularizer.on_weights and step else None
            for i, tasks in enumerate(stacks):
                loss = partial(self._inner, head, model, tasks, step, mean)
                with torch.no_grad():
                    lr = head.learning_rates[0]
                    weights[i], states[i], losses[i] = head.advance(loss, detached(weights[i]), states[i], step, lr)
        head.keep(states)
        return weights, torch.cat(losses)

    def _inner(
        self,
        head: AdaptingHead,
        model: FunctionalBackbone,
        tasks: SupportSet,
        step: int,
        mean: Weights | None,
        weights: Weights,
    ) -> Tensor:
        loss = head.loss(model, tasks, step, weights)
        return loss if mean is None else loss + self.regularizer(weights, mean)

    @staticmethod
    @torch.no_grad()
    def _record(model: FunctionalBackbone, stacks: Sequence[SupportSet], weights: Sequence[Weights]) -> None:
        """Record running moments, if there are any, of the support sets under the adapted weights."""
        if any(isinstance(norm, RunningNorm) for norm in model.backbone.norms):
            for tasks, value in zip(stacks, weights, strict=True):
                model.embed(value, tasks.images)


def mean_over_tasks(weights: Sequence[Weights], names: Sequence[str]) -> Weights:
    """Return the means of the weights ``names`` over the tasks of all processes."""
    means = {name: torch.cat([value[name] for value in weights]).mean(0) for name in names}
    flat = mean_over_processes(torch.cat([mean.flatten() for mean in means.values()]))
    parts = flat.split([mean.numel() for mean in means.values()])
    return {name: part.view_as(means[name]) for name, part in zip(names, parts, strict=True)}
