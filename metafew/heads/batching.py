"""How the tasks of a meta-batch are batched while a head adapts to each of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.backbones.task_weights import obstacles
from metafew.config.option_values import check_choice, check_integer
from metafew.episode import Labelled
from metafew.errors import UsageError, reason
from metafew.heads.fast_weights import (
    FunctionalBackbone,
    Gradient,
    PrecomputedFeatures,
    SupportSet,
    autograd_gradient,
    vmap_safe_gradient,
)
from metafew.heads.head import Head
from metafew.norms.running import RunningNorm

Readout = dict[float, dict[int, list[str]]]
"""For each inner learning rate, the names of the results that are read after each step."""
Model = FunctionalBackbone | PrecomputedFeatures
MEMORY = 600
"""Default memory limit, in MiB, for the tasks of a batch on a CPU."""
VALUES_PER_MIB = 2**24 // 300
"""How many values of feature maps and weights take up 1 MiB, by a rough estimate that ignores the network's depth:
with the default of 600 MiB, training steps of MAML and first-order MAML with conv4 on Omniglot need 180 to 590 MiB, and
85 to 105 MiB with one task at a time."""
WIDTH = 64
"""Assumed number of values per pixel in this estimate: the channels of a first layer."""
EXECUTIONS = ("auto", "loop", "batch", "chunk", "vmap")
REASON = 160
"""Maximum length, in characters, of a ``vmap`` error that a message quotes."""
log = logging.getLogger(__name__)


class BatchingHead(Head):
    """Adapt to the tasks of a meta-batch one by one or in batches, with the same results.

    Subclasses implement :meth:`_results` for a stack of tasks.

    Args:
        names: names of the backbone's weights that differ from task to task.
        steps: gradient steps.
        first_order: whether training keeps only the last step in memory.
        inner: how the tasks of a meta-batch are batched, which affects only random numbers: ``loop``, one by one;
            ``batch``, as many at a time as ``memory`` allows, by layers with weights for each task
            (:mod:`metafew.backbones.task_weights`); ``chunk``, at most ``chunk`` at a time, by ``vmap``; ``vmap``, as
            many at a time as ``memory`` allows, by ``vmap``. ``auto`` is ``vmap`` on a GPU and ``batch`` elsewhere, or
            ``loop`` for networks that cannot be batched. In training, only one such batch is held in memory at a time.
        chunk: maximum number of tasks in a chunk.
        memory: limit, in MiB, of the estimated memory of the tasks that ``batch`` or ``vmap`` processes together; at
            least one task is processed. ``auto`` is :data:`MEMORY`, or a quarter of the memory of a GPU.
    """

    memory_option = "inner=loop"

    def __init__(self, names: Sequence[str], steps: int, first_order: bool, inner: str, chunk: int, memory: int | str):
        check_choice("head.inner", inner, EXECUTIONS)
        check_integer("head.chunk", chunk, 1, 5)
        if memory != "auto":
            check_integer("head.memory", memory, 1, MEMORY)
        super().__init__()
        self.names, self.steps, self.first_order = list(names), steps, first_order
        self.inner, self.chunk, self.memory = inner, chunk, memory
        self.batchable, self.adapts_backbone = True, bool(names)

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
        weights = kept * self.weights_of_a_task(backbone)
        mib = self.memory if isinstance(self.memory, int) else memory_of(query.device)
        return max(1, mib * VALUES_PER_MIB // (WIDTH * pixels + weights))

    def weights_of_a_task(self, backbone: Backbone) -> int:
        """Return the number of values that adaptation holds for each task, without activations."""
        return sum(backbone.get_parameter(name).numel() for name in self.names)

    def tasks_in_step(self, backbone: Backbone, support: Tensor) -> int:
        """Return how many tasks take an inner step together outside ``vmap``, as in ``objective=reptile``."""
        batched = self.execution(backbone, support.device) == "batch"
        return self._within_memory(backbone, support, support[:, :0]) if batched else 1

    def _measure(
        self, backbone: Backbone, support: Labelled, query: Tensor, way: int, readout: Readout
    ) -> dict[str, Tensor]:
        execution = self.execution(backbone, query.device)
        one = self._batch if execution == "loop" else partial(self._batched_or_loop, execution)
        model, images = FunctionalBackbone(backbone), support.images
        if not self.adapts_backbone:
            model, (images, query) = PrecomputedFeatures(), backbone.embed(images, query)
        batches = math.ceil(len(images) / self._size(execution, backbone, images, query))
        parts = zip(*(part.tensor_split(batches) for part in (images, support.labels, query)), strict=True)
        return concatenated([one(model, way, readout, *part) for part in parts])

    def _batched_or_loop(
        self, execution: str, model: Model, way: int, readout: Readout, *tasks: Tensor
    ) -> dict[str, Tensor]:
        """Return the results of several tasks, batched, or in a loop if the network does not support ``auto``'s choice.

        Raises:
            UsageError: if ``inner`` is not ``auto``, and only the loop can process the network.
        """
        try:
            return (self._batch if execution == "batch" else self._vmap)(model, way, readout, *tasks)
        except (UsageError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # torch does not document which errors vmap raises for what it cannot batch
            one_by_one = zip(*(part.split(1) for part in tasks), strict=True)
            # If the loop fails too, its error comes from the network itself.
            results = concatenated([self._batch(model, way, readout, *task) for task in one_by_one])
            how, why = "vmap" if execution == "chunk" else execution, reason(error)[:REASON]
            if self.inner != "auto":
                raise UsageError(
                    f"expected a network that {how} can process for head.inner={self.inner}, got one that it cannot "
                    f"({why}): type head.inner=loop"
                ) from error
            self.batchable = False
            log.warning("head.inner=auto is loop from here on, as %s cannot process this network (%s)", how, why)
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
        raise NotImplementedError


def memory_of(device: torch.device) -> int:
    """Return the memory limit in MiB for tasks processed together, the same for all processes on one machine."""
    return torch.cuda.get_device_properties(device).total_memory // 2**22 if device.type == "cuda" else MEMORY


def concatenated(results: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the results of consecutive tasks."""
    return {name: torch.cat([result[name] for result in results]) for name in results[0]}
