"""The inner loop: fit a backbone and an output layer to each task by gradient steps, then label its queries."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.backbones.task_convolution import summed_gradients
from metafew.backbones.task_weights import obstacles
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
from metafew.heads.inner import SGD, Adam, Rates, Weights, adapting_shapes, for_each, of_first_task
from metafew.heads.output import Output, classify, prototypes
from metafew.norms.running import RunningNorm

Readout = dict[float, dict[int, list[str]]]
"""For each inner learning rate, the names of the results that are read after each step."""
Model = FunctionalBackbone | PrecomputedFeatures
MEMORY = 300
"""Largest memory, in MiB, of the tasks in a batch on a CPU."""
VALUES_PER_MIB = 2**24 // 300
"""Number of values of maps and weights that need 1 MiB, by a rough estimate that ignores the network's depth: training
conv4 with the defaults needs 230 to 300 MiB for as many tasks as 300 MiB allow, and 30 to 55 for one."""
WIDTH = 64
"""Assumed number of values per pixel in this estimate: the channels of a first layer."""
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
        inner: how the tasks of a meta-batch are batched, which changes nothing but random numbers: one by one in a
            ``loop``; in a ``batch`` of as many as ``memory`` allows, by layers with weights for each task
            (:mod:`metafew.backbones.task_weights`); a ``chunk`` of them by ``vmap``, or as many as ``memory`` allows by
            ``vmap``. ``auto`` is ``vmap`` on a GPU and ``batch`` elsewhere, or ``loop`` if that cannot process the
            network. In training, only one such batch is held in memory at a time.
        chunk: tasks in a chunk.
        memory: memory in MiB that tasks may need together in a ``batch`` or in ``vmap``, by an estimate; at least one
            task is processed. ``auto`` is :data:`MEMORY`, or a quarter of the memory of a GPU.
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
        memory: int | str = "auto",
    ):
        super().__init__()
        self.output, self.names, self.steps, self.learning_rates = output, list(names), steps, tuple(lrs)
        self.rule = rule or SGD()
        self.first_order, self.inner, self.chunk, self.memory = first_order, inner, chunk, memory
        self.batchable = True
        self.adapts_backbone, self.fixed_way = bool(names), output.way
        self.rates = Rates(rates, lrs[0], steps, adapting_shapes(backbone, self.names, output))

    @property
    def evaluation_setting(self) -> tuple[float, int]:
        """Learning rate and number of steps in evaluation."""
        return self.learning_rates[0], self.steps

    def execution(self, backbone: Backbone, device: torch.device) -> str:
        """Return ``loop``, ``batch``, ``chunk`` or ``vmap``: how tasks are batched."""
        if self.inner == "auto":
            on_gpu = device.type == "cuda"
            able = self.batchable and (on_gpu or not obstacles(backbone, self.names))
            return "loop" if not able else "vmap" if on_gpu else "batch"
        if self.inner == "batch" and (found := obstacles(backbone, self.names)):
            raise UsageError(
                "expected a network of convolutions, linear layers and norms whose weights may differ by task for "
                f"head.inner=batch, got {', '.join(found)}: type head.inner=loop"
            )
        return self.inner

    def tasks_per_chunk(self, backbone: Backbone, support: Tensor, query: Tensor) -> int:
        """Return how many tasks are processed together.

        Args:
            backbone: the feature extractor.
            support: images ``(t, s, c, h, w)``, or features ``(t, s, d)`` where the backbone does not adapt.
            query: the same of the queries.
        """
        return self._size(self.execution(backbone, query.device), backbone, support, query)

    def _size(self, execution: str, backbone: Backbone, support: Tensor, query: Tensor) -> int:
        fixed = {"loop": 1, "chunk": self.chunk}
        return fixed[execution] if execution in fixed else self._within_memory(backbone, support, query)

    def _within_memory(self, backbone: Backbone, support: Tensor, query: Tensor) -> int:
        kept = 1 + self.steps if self.training and not self.first_order else 1
        pixels = kept * support[0, :, 0].numel() + query[0, :, 0].numel()
        weights = kept * sum(backbone.get_parameter(name).numel() for name in self.names)
        mib = self.memory if isinstance(self.memory, int) else memory_of(query.device)
        return max(1, mib * VALUES_PER_MIB // (WIDTH * pixels + weights))

    def tasks_in_step(self, backbone: Backbone, support: Tensor) -> int:
        """Return how many tasks take an inner step together outside ``vmap``, as in ``objective=reptile``."""
        batched = self.execution(backbone, support.device) == "batch"
        return self._within_memory(backbone, support, support[:, :0]) if batched else 1

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
        for images, labels in zip(*(part.split(1) for part in support), strict=True):
            path = self._path(model, SupportSet(images, labels, way), lr, steps, autograd_gradient)
            start = next(path)
            end = deque(path, maxlen=1).pop() if steps else start
            yield of_first_task(start), of_first_task(end)

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

    def loss(self, model: Model, tasks: SupportSet, step: int, weights: Weights) -> Tensor:
        """Return the mean cross-entropy ``(t,)``, in nats, of the support rows that step ``step`` uses."""
        features, _ = model.embed(weights, tasks.images, record=False)
        logits, labels = classify(features, weights), tasks.labels
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)

    def _measure(
        self, backbone: Backbone, support: Labelled, query: Tensor, way: int, readout: Readout
    ) -> dict[str, Tensor]:
        execution = self.execution(backbone, query.device)
        one = self._batch if execution == "loop" else partial(self._batched_or_loop, execution)
        model, images = FunctionalBackbone(backbone), support.images
        if not self.adapts_backbone:
            model, (images, query) = PrecomputedFeatures(), backbone.embed(images, query)
        size = self._size(execution, backbone, images, query)
        parts = zip(*(part.split(size) for part in (images, support.labels, query)), strict=True)
        return concatenated([one(model, way, readout, *part) for part in parts])

    def _batched_or_loop(
        self, execution: str, model: Model, way: int, readout: Readout, *tasks: Tensor
    ) -> dict[str, Tensor]:
        """Return the results of several tasks, batched, or in a loop if ``auto`` chose what the network does not allow.

        Raises:
            UsageError: if ``inner`` is not ``auto``, and only the loop can process the network.
        """
        try:
            return (self._batch if execution == "batch" else self._vmap)(model, way, readout, *tasks)
        except (UsageError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # torch documents no class of errors for what vmap cannot batch
            one_by_one = zip(*(part.split(1) for part in tasks), strict=True)
            # If the loop fails too, its error is that of the network.
            results = concatenated([self._batch(model, way, readout, *task) for task in one_by_one])
            how, reason = "vmap" if execution == "chunk" else execution, " ".join(str(error).split())[:REASON]
            if self.inner != "auto":
                raise UsageError(
                    f"expected a network that {how} can process for head.inner={self.inner}, got one that it cannot "
                    f"({reason}): type head.inner=loop"
                ) from error
            self.batchable = False
            log.warning("head.inner=auto is loop from here on, as %s cannot process this network (%s)", how, reason)
            return results

    def _batch(
        self, model: Model, way: int, readout: Readout, images: Tensor, labels: Tensor, query: Tensor
    ) -> dict[str, Tensor]:
        """Return the results ``(t, q, w)`` of a stack of tasks that go through the layers together."""
        return dict(self._results(model, SupportSet(images, labels, way), query, readout, autograd_gradient))

    def _vmap(
        self, model: Model, way: int, readout: Readout, images: Tensor, labels: Tensor, query: Tensor
    ) -> dict[str, Tensor]:
        """Return the results ``(t, q, w)`` of several tasks, each a stack of one inside ``vmap``."""
        norms: list[RunningNorm] = []

        def one(*task: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
            ledger: dict[RunningNorm, Tensor] = {}
            images, labels, query = (part.unsqueeze(0) for part in task)
            stack = SupportSet(images, labels, way)
            logits = dict(self._results(model, stack, query, readout, vmap_safe_gradient, record=ledger))
            norms[:] = ledger
            return {name: value[0] for name, value in logits.items()}, list(ledger.values())

        logits, moments = torch.vmap(one, randomness="different")(images, labels, query)
        for norm, value in zip(norms, moments, strict=True):
            norm.gather(value.sum(0))
        return logits

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
        # Weights then are those before adaptation, which all tasks share, plus constants.
        shifted = self.first_order and self.rates.kind == "fixed" and type(self).start is AdaptingHead.start
        for lr, names in readout.items():
            for step, weights in enumerate(self._path(model, tasks, lr, max(names), gradient)):
                if step in names:
                    with summed_gradients() if shifted else nullcontext():
                        _, features = model.embed(weights, tasks.images, query, record=record, targets_only=True)
                    logits = classify(features, weights)
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
            grads, _ = gradient(loss, weights, outer and not self.first_order)
            weights, state = self.rule(weights, grads, state, self.rates.at(step, lr))
            weights, state = hold(weights), hold(state)
            yield weights


def memory_of(device: torch.device) -> int:
    """Return the memory in MiB that tasks may need together on ``device``: all of a run on one machine agree on it."""
    return torch.cuda.get_device_properties(device).total_memory // 2**22 if device.type == "cuda" else MEMORY


def concatenated(results: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the results of all tasks from those of consecutive ones."""
    return {name: torch.cat([result[name] for result in results]) for name in results[0]}
