"""The inner loop: fit a backbone and an output layer to each task by gradient steps, then label its queries."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.errors import UsageError
from metafew.heads.fast_weights import (
    FunctionalBackbone,
    Gradient,
    PrecomputedFeatures,
    SupportSet,
    autograd_gradient,
    detached,
    vmap_safe_gradient,
)
from metafew.heads.head import Head
from metafew.heads.inner import SGD, Adam, Rates, Weights, adapting_shapes
from metafew.heads.output import Output, classify, prototypes
from metafew.norms.running import RunningNorm

Readout = dict[float, dict[int, list[str]]]
"""For each inner learning rate, the names of the results that are read after each step."""
Model = FunctionalBackbone | PrecomputedFeatures
REASON = 160
"""Most characters of an error of ``vmap`` in a message."""
log = logging.getLogger(__name__)


class AdaptingHead(Head):
    """Fit weights to the support set of each task by gradient steps, and label its queries with the adapted weights.

    Each step descends :meth:`loss`, the mean cross-entropy of the support set, whose rows are the context of every
    norm. The queries are then embedded together with the support set, which provides the context moments under the
    adapted weights. In training the gradient of the queries' loss passes through the steps. Where no weight of the
    backbone adapts, features are computed once.

    Args:
        backbone: the backbone that it will adapt; only names and shapes of its weights matter here.
        output: the output layer before adaptation, which always adapts.
        names: names of the backbone's weights that adapt.
        steps: gradient steps.
        lrs: inner learning rate, the first; others are candidates for a subclass to choose from.
        rule: how weights descend (:mod:`metafew.heads.inner`).
        rates: ``fixed`` or learned learning rates (:class:`~metafew.heads.inner.Rates`).
        first_order: take the outer gradient as if inner gradients were constant.
        inner: how the tasks of a meta-batch are batched, which does not change results: one by one in a ``loop``, a
            ``chunk`` of them by ``vmap``, or all by ``vmap``; ``auto`` is ``vmap`` on a GPU, where ``vmap`` can batch
            the network, else ``loop``. In training no more tasks than these are held in memory at once.
        chunk: tasks in a chunk.
    """

    memory_option = "inner=loop"

    def __init__(
        self,
        backbone: Backbone,
        output: Output,
        names: Sequence[str],
        steps: int,
        lrs: Sequence[float],
        rule: SGD | Adam | None = None,
        rates: str = "fixed",
        first_order: bool = False,
        inner: str = "auto",
        chunk: int = 4,
    ):
        super().__init__()
        self.output, self.names, self.steps, self.learning_rates = output, list(names), steps, tuple(lrs)
        self.rule = rule or SGD()
        self.first_order, self.inner, self.chunk, self.batchable = first_order, inner, chunk, True
        self.adapts_backbone, self.fixed_way = bool(names), output.way
        self.rates = Rates(rates, lrs[0], steps, adapting_shapes(backbone, self.names, output))

    @property
    def evaluation_setting(self) -> tuple[float, int]:
        """Learning rate and number of steps in evaluation."""
        return self.learning_rates[0], self.steps

    def tasks_per_chunk(self, device: torch.device) -> int | None:
        """Return how many tasks are processed together; None for all of a meta-batch."""
        automatic = "vmap" if device.type == "cuda" and self.batchable else "loop"
        inner = automatic if self.inner == "auto" else self.inner
        return {"loop": 1, "chunk": self.chunk, "vmap": None}[inner]

    def forward(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` of the images ``query`` ``(t, q, c, h, w)``."""
        return self._measure(backbone, support, query, way, self.readout([]))[""]

    def readings(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> dict[str, Tensor]:
        """Return logits under the name ``""``, and those of everything in :attr:`extra_readings`."""
        return self._measure(backbone, support, query, way, self.readout(self.extra_readings))

    def readout(self, extra: Sequence[str]) -> Readout:
        """Return when the result, which has the name ``""``, and the readings of the names ``extra`` are taken."""
        lr, steps = (self.learning_rates[0], self.steps) if self.training else self.evaluation_setting
        return {lr: {steps: [""]}}

    def adaptation(self, backbone: Backbone, support: Labelled, way: int) -> Iterator[tuple[Weights, Weights]]:
        """Yield the weights of each task before and after the steps of evaluation; in eval mode, one by one."""
        model, (lr, steps) = FunctionalBackbone(backbone), self.evaluation_setting
        for images, labels in zip(*support, strict=True):
            path = self._path(model, SupportSet(images, labels, way), lr, steps, autograd_gradient)
            start = next(path)
            yield start, deque(path, maxlen=1).pop() if steps else start

    def start(self, model: Model, task: SupportSet) -> Weights:
        """Return the weights that adaptation starts from."""
        fast = model.weights(self.names)
        output = self.output.start(task.way, like=task.images)
        if self.output.kind == "prototype":
            features, _ = model.embed(fast, task.images, record=False)
            output = prototypes(features[0], task.labels, task.way)
        return fast | output

    def first_state(self, weights: Weights) -> Weights:
        """Return the state of the inner optimizer before the first step."""
        return self.rule.start(weights)

    def lasts(self, name: str) -> bool:
        """Return whether a weight carries over from task to task, so that ``objective=reptile`` moves it."""
        return True

    def keep(self, states: Sequence[Weights]) -> None:
        """Record the final states of the inner optimizer, one for each task of a meta-batch in lock step."""

    def loss(self, model: Model, task: SupportSet, step: int, weights: Weights) -> Tensor:
        """Return the mean cross-entropy, in nats, of the support rows that step ``step`` uses."""
        features, _ = model.embed(weights, task.images, record=False)
        return F.cross_entropy(classify(features[0], weights), task.labels)

    def _measure(
        self, backbone: Backbone, support: Labelled, query: Tensor, way: int, readout: Readout
    ) -> dict[str, Tensor]:
        size = self.tasks_per_chunk(query.device)
        model, images = FunctionalBackbone(backbone), support.images
        if not self.adapts_backbone:
            model, (images, query) = PrecomputedFeatures(), backbone.embed(images, query)
        parts = zip(*(part.split(size or len(part)) for part in (images, support.labels, query)), strict=True)
        one = partial(self._loop if size == 1 else self._vmap_or_loop, model, way, readout)
        return concatenated([one(*part) for part in parts])

    def _vmap_or_loop(self, model: Model, way: int, readout: Readout, *tasks: Tensor) -> dict[str, Tensor]:
        """Return the results of several tasks, by ``vmap``, or in a loop if ``vmap`` cannot batch the network.

        Raises:
            UsageError: if ``inner`` is not ``auto``, and only the loop can process the network.
        """
        try:
            return self._vmap(model, way, readout, *tasks)
        except (UsageError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # torch documents no class of errors for what vmap cannot batch
            one_by_one = zip(*(part.split(1) for part in tasks), strict=True)
            # If the loop fails too, its error is that of the network.
            results = concatenated([self._loop(model, way, readout, *task) for task in one_by_one])
            reason = " ".join(str(error).split())[:REASON]
            if self.inner != "auto":
                raise UsageError(
                    f"expected a network that vmap can batch for head.inner={self.inner}, got one that it cannot "
                    f"({reason}): type head.inner=loop"
                ) from error
            self.batchable = False
            log.warning("head.inner=auto is loop from here on, as vmap cannot batch this network (%s)", reason)
            return results

    def _loop(
        self, model: Model, way: int, readout: Readout, images: Tensor, labels: Tensor, query: Tensor
    ) -> dict[str, Tensor]:
        """Return the results ``(1, q, w)`` of one task."""
        task = SupportSet(images[0], labels[0], way)
        return dict(self._results(model, task, query[0], readout, autograd_gradient))

    def _vmap(
        self, model: Model, way: int, readout: Readout, images: Tensor, labels: Tensor, query: Tensor
    ) -> dict[str, Tensor]:
        """Return the results ``(t, q, w)`` of several tasks at once."""
        norms: list[RunningNorm] = []

        def one(images: Tensor, labels: Tensor, query: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
            ledger: dict[RunningNorm, Tensor] = {}
            task = SupportSet(images, labels, way)
            logits = dict(self._results(model, task, query, readout, vmap_safe_gradient, record=ledger))
            norms[:] = ledger
            return {name: value[0] for name, value in logits.items()}, list(ledger.values())

        logits, moments = torch.vmap(one, randomness="different")(images, labels, query)
        for norm, value in zip(norms, moments, strict=True):
            norm.gather(value.sum(0))
        return logits

    def _results(
        self,
        model: Model,
        task: SupportSet,
        query: Tensor,
        readout: Readout,
        gradient: Gradient,
        record: bool | dict = True,
    ) -> Iterator[tuple[str, Tensor]]:
        """Adapt to one task and yield names and logits ``(1, q, w)`` of its queries."""
        for lr, names in readout.items():
            for step, weights in enumerate(self._path(model, task, lr, max(names), gradient)):
                if step in names:
                    _, features = model.embed(weights, task.images, query, record=record)
                    logits = classify(features, weights)
                    yield from ((name, logits) for name in names[step])

    def _path(self, model: Model, task: SupportSet, lr: float, steps: int, gradient: Gradient) -> Iterator[Weights]:
        """Yield the weights after 0, 1, ..., ``steps`` steps."""
        outer = self.training and torch.is_grad_enabled()
        weights = self.start(model, task)
        state = self.first_state(weights)
        # Without an outer gradient the history is not needed.
        hold = dict if outer else detached
        weights, state = hold(weights), hold(state)
        yield weights
        for step in range(steps):
            loss = partial(self.loss, model, task, step)
            grads, _ = gradient(loss, weights, outer and not self.first_order)
            weights, state = self.rule(weights, grads, state, self.rates.at(step, lr))
            weights, state = hold(weights), hold(state)
            yield weights


def concatenated(results: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the results of all tasks from those of consecutive ones."""
    return {name: torch.cat([result[name] for result in results]) for name in results[0]}
