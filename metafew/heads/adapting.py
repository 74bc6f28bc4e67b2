"""The inner loop: fit a backbone and an output layer to each task by gradient steps, then label its queries."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.backbones.task_convolution import summed_gradients
from metafew.episode import Labelled
from metafew.heads.batching import BatchingHead, Model, Readout
from metafew.heads.curvature import Curvature
from metafew.heads.fast_weights import (
    FunctionalBackbone,
    Gradient,
    Loss,
    SupportSet,
    autograd_gradient,
    detached,
)
from metafew.heads.inner import SGD, Rates, Rule, Weights, adapting_shapes, for_each, of_first_task
from metafew.heads.output import Output, classify, prototypes


class AdaptingHead(BatchingHead):
    """Fit weights to the support set of each task by gradient steps, and label its queries with the adapted weights.

    Each step descends :meth:`loss`, the mean cross-entropy of the support set, whose rows are the context of every
    norm. The queries are then embedded together with the support set, which provides the context moments under the
    adapted weights. In training the gradient of the queries' loss passes through the steps. Where no weight of the
    backbone adapts, features are computed once.

    Args:
        backbone: the backbone to adapt; only the names and shapes of its weights are used here.
        output: the output layer before adaptation; it adapts too if its ``adapts`` is true.
        names: names of the backbone's weights that adapt.
        steps: gradient steps.
        lrs: inner learning rates; the first is used, the others are candidates for a subclass to choose from.
        rule: the inner optimizer (:mod:`metafew.heads.inner`).
        rates: ``fixed`` or learned learning rates (:class:`~metafew.heads.inner.Rates`), or matrices as ``curvature``
            (:class:`~metafew.heads.curvature.Curvature`).
        first_order: take the outer gradient as if inner gradients were constant.
        inner: how the tasks of a meta-batch are batched: ``loop``, ``batch``, ``chunk``, ``vmap`` or ``auto``
            (:class:`~metafew.heads.batching.BatchingHead`).
        chunk: maximum number of tasks in a chunk.
        memory: memory limit in MiB for tasks that are processed together, or ``auto``.
    """

    def __init__(
        self,
        backbone: Backbone,
        output: Output,
        names: Sequence[str],
        steps: int,
        lrs: Sequence[float],
        rule: Rule | None = None,
        rates: str = "fixed",
        first_order: bool = False,
        inner: str = "auto",
        chunk: int = 4,
        memory: int | str = "auto",
    ):
        super().__init__(names, steps, first_order, inner, chunk, memory)
        self.output, self.learning_rates, self.rule, self.fixed_way = output, tuple(lrs), rule or SGD(), output.way
        self.test_steps: Any = steps
        shapes = adapting_shapes(backbone, self.names, output)
        self.rates = Curvature(shapes) if rates == "curvature" else Rates(rates, lrs[0], steps, shapes)

    @property
    def evaluation_setting(self) -> tuple[float, int]:
        """Learning rate and number of steps in evaluation."""
        return self.learning_rates[0], self.test_steps

    def forward(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` of the images ``query`` ``(t, q, c, h, w)``."""
        return self._measure(backbone, support, query, way, self.readout([]))[""]

    def readings(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> dict[str, Tensor]:
        """Return logits under the name ``""``, and those of everything in :attr:`extra_readings`."""
        return self._measure(backbone, support, query, way, self.readout(self.extra_readings))

    def readout(self, extra: Sequence[str]) -> Readout:
        """Return at which learning rate and step the result, named ``""``, and the readings ``extra`` are taken."""
        lr, steps = (self.learning_rates[0], self.steps) if self.training else self.evaluation_setting
        return {lr: {steps: [""]}}

    def adaptation(self, backbone: Backbone, support: Labelled, way: int) -> Iterator[tuple[Weights, Weights]]:
        """Yield the weights of each task before and after the steps of evaluation; call it in eval mode."""
        model, (lr, steps) = FunctionalBackbone(backbone), self.evaluation_setting
        for images, labels in zip(*(part.split(1) for part in support), strict=True):
            path = self._path(model, SupportSet(images, labels, way), lr, steps, autograd_gradient)
            start = next(path)
            end = deque(path, maxlen=1).pop() if steps else start
            before, after = (of_first_task(part | self.of_network(model, part)) for part in (start, end))
            yield before, after

    def start(self, model: Model, tasks: SupportSet) -> Weights:
        """Return the weights ``(t, ...)`` that adaptation starts from."""
        fast = for_each(model.weights(self.names), len(tasks.images))
        output = for_each(self.output.start(tasks.way, like=tasks.images), len(tasks.images))
        if self.output.kind == "prototype":
            features, _ = model.embed(fast, tasks.images, record=False)
            output = prototypes(features, tasks.labels, tasks.way)
        return fast | output

    def first_state(self, weights: Weights) -> Weights:
        """Return the state of the inner optimizer before the first step."""
        return self.rule.start(weights)

    def lasts(self, name: str) -> bool:
        """Return whether a weight carries over from task to task, so that ``objective=reptile`` moves it."""
        return True

    def keep(self, states: Sequence[Weights]) -> None:
        """Record the final states of the inner optimizer of all tasks of a meta-batch, stack by stack."""

    def of_network(self, model: Model, weights: Weights) -> Weights:
        """Return the weights of the network, by name, computed from the weights that adapt."""
        return weights

    def embed(self, model: Model, weights: Weights, *images: Tensor, **options) -> tuple[Tensor, ...]:
        """Return the features ``(t, n, d)`` of context and targets ``(t, n, c, h, w)``, with weights for each task."""
        return model.embed(self.of_network(model, weights), *images, **options)

    def logits(self, features: Tensor, weights: Weights) -> Tensor:
        """Return the logits ``(t, n, w)`` of ``features`` ``(t, n, d)`` in float32 or better."""
        return classify(features, weights)

    def loss(self, model: Model, tasks: SupportSet, step: int, weights: Weights) -> Tensor:
        """Return the mean cross-entropy ``(t,)``, in nats, of the support rows that step ``step`` uses."""
        features, _ = self.embed(model, weights, tasks.images, record=False)
        return mean_cross_entropy(self.logits(features, weights), tasks.labels)

    def label(
        self, model: Model, tasks: SupportSet, query: Tensor, weights: Weights, record: bool | dict = False
    ) -> Tensor:
        """Return the logits ``(t, q, w)`` of queries ``(t, q, c, h, w)`` under adapted weights."""
        _, features = self.embed(model, weights, tasks.images, query, record=record, targets_only=True)
        return self.logits(features, weights)

    def advance(
        self,
        loss: Loss,
        weights: Weights,
        state: Weights,
        step: int,
        lr: float,
        gradient: Gradient = autograd_gradient,
        graph: bool = False,
    ) -> tuple[Weights, Weights, Tensor]:
        """Take an inner step.

        Args:
            loss: the inner loss ``(t,)`` of weights ``(t, ...)``.
            weights: those before the step.
            state: the state of the inner optimizer.
            step: number of the step, from 0.
            lr: learning rate, where rates are not learned.
            gradient: how gradients are taken.
            graph: whether the gradients can be differentiated in turn (``create_graph``).

        Returns:
            The weights and the state after the step, and the losses before it.
        """
        adapting = {name: weights[name] for name in self.rates.names}
        grads, losses = gradient(lambda adapting: loss(weights | adapting), adapting, graph)
        directions, state = self.rule(grads, state)
        return weights | self.rates.descend(adapting, directions, step, lr), state, losses

    def _results(
        self,
        model: Model,
        tasks: SupportSet,
        query: Tensor,
        readout: Readout,
        gradient: Gradient,
        record: bool | dict = True,
    ) -> Iterator[tuple[str, Tensor]]:
        """Adapt to a stack of tasks and yield names and logits ``(t, q, w)`` of their queries."""
        tasks = tasks._replace(queries=query)
        # If ``shifted``, the weights of each task are the shared initial weights plus constants.
        shifted = self.first_order and self.rates.kind == "fixed" and type(self).start is AdaptingHead.start
        for lr, names in readout.items():
            for step, weights in enumerate(self._path(model, tasks, lr, max(names), gradient)):
                if step in names:
                    with summed_gradients() if shifted else nullcontext():
                        logits = self.label(model, tasks, query, weights, record)
                    yield from ((name, logits) for name in names[step])

    def _path(self, model: Model, tasks: SupportSet, lr: float, steps: int, gradient: Gradient) -> Iterator[Weights]:
        """Yield the weights after 0, 1, ..., ``steps`` steps."""
        outer = self.training and torch.is_grad_enabled()
        weights = self.start(model, tasks)
        state = self.first_state(weights)
        # Without an outer gradient the history is not needed.
        hold = dict if outer else detached
        weights, state = hold(weights), hold(state)
        yield weights
        for step in range(steps):
            loss = partial(self.loss, model, tasks, step)
            graph = outer and not self.first_order
            weights, state, _ = self.advance(loss, weights, state, step, lr, gradient, graph)
            weights, state = hold(weights), hold(state)
            yield weights


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy ``(t,)``, in nats, of logits ``(t, n, w)`` and labels ``(t, n)``."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
