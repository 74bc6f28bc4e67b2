"""Reptile's inner loop (Nichol et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.config.option_values import check_choice, check_integer
from metafew.errors import UsageError
from metafew.heads.batching import Model
from metafew.heads.fast_weights import SupportSet
from metafew.heads.inner import Weights, adapting_shapes, entry
from metafew.heads.maml import MAML
from metafew.norms.running import kept_finite


class Reptile(MAML):
    """Fit all weights to the support set by Adam on small minibatches of it; train by ``objective=reptile``.

    Minibatches traverse random permutations of the support rows, one permutation after the other: in training a
    function of (seed, task, step), in evaluation of the step only. The tasks of a sampler list their rows in an order
    that is random too, so that no step sees the same classes in every task.

    The inner Adam has no momentum, and its second moments carry over from task to task. They are buffers, replaced once
    a step by their mean over the tasks of the meta-batch; evaluation starts from them and never changes them. The
    authors' tasks update a single state one after another, which depends on the order of tasks and on the number of
    processes; this is a deviation. With ``fresh`` every task starts from zero.

    Args:
        backbone: the backbone to adapt.
        trained: whether the head is, or will be, trained.
        way: number of classes of every task, for ``output="linear"``.
        steps: inner steps in training.
        test_steps: inner steps in evaluation, or a list to choose from.
        lr: inner learning rate, or a list to choose from in evaluation.
        batch: support rows in an inner step of training.
        test_batch: support rows in an inner step of evaluation.
        fresh: restart the second moments for each task.
        adapt: ``all`` weights, ``no_norm`` or ``output``, as in :class:`~metafew.heads.maml.MAML`.
        freeze: prefixes of names of backbone weights that do not adapt.
        output: ``linear``, ``zero`` or ``prototype`` (:class:`~metafew.heads.output.Output`).
        inner: how the tasks of a meta-batch are batched; ``objective=reptile`` advances those of a ``batch`` together.
        chunk: tasks in a chunk.
        memory: memory limit in MiB for tasks that are processed together, or ``auto``
            (:class:`~metafew.heads.batching.BatchingHead`).
        each_step: also measure after every step of evaluation.
        seed: seed of the minibatches in training.
    """

    evaluation_options = ("test_steps", "each_step", "test_batch")
    exemptions: ClassVar = MAML.exemptions | {"support_order": "minibatches are drawn from row numbers"}
    lock_step = True

    def __init__(
        self,
        backbone: Backbone,
        trained: bool,
        way: int | str,
        steps: int = 5,
        test_steps: int | Sequence[int] = 50,
        lr: float | Sequence[float] = 1e-3,
        batch: int = 10,
        test_batch: int = 5,
        fresh: bool = False,
        adapt: str = "all",
        freeze: Sequence[str] = (),
        output: str = "auto",
        inner: str = "auto",
        chunk: int = 4,
        memory: int | str = "auto",
        each_step: bool = False,
        seed: int = 0,
    ):
        check_choice("head.adapt", adapt, ("all", "no_norm", "output"))  # the outer step moves what tasks adapt
        for key, value in {"batch": batch, "test_batch": test_batch}.items():
            check_integer(f"head.{key}", value, 1, 5)
        check_integer("head.seed", seed, 0)
        if output == "shared":
            raise UsageError(
                "expected an output layer with a row for each class, got head.output=shared: type head.output=zero"
            )
        if output == "auto" and not isinstance(way, int):
            output = "zero"
        super().__init__(
            backbone, trained, way, steps, test_steps, lr, optimizer="adam", first_order=True, adapt=adapt,
            freeze=freeze, output=output, inner=inner, chunk=chunk, memory=memory, each_step=each_step,
        )  # fmt: skip
        self.batch, self.test_batch, self.fresh, self.seed = batch, test_batch, fresh, seed
        self.lasting = []
        for shape in adapting_shapes(backbone, self.names, self.output):
            if self.lasts(shape.name) and not fresh:
                self.register_buffer(entry(shape.name), torch.zeros(shape.size))
                self.register_buffer(entry(f"{shape.name}/steps"), torch.zeros(()))
                self.lasting += [shape.name, f"{shape.name}/steps"]
        self.pending: Tensor | None = None

    def lasts(self, name: str) -> bool:
        """Return whether a weight carries over from task to task: a new output layer for each task does not."""
        return self.output.kind == "linear" or name not in ("weight", "bias")

    def first_state(self, weights: Weights) -> Weights:
        """Return the second moments that tasks start from."""
        start = self.rule.start(weights)
        return start | {name: getattr(self, entry(name)).expand_as(start[name]) for name in self.lasting}

    def loss(self, model: Model, tasks: SupportSet, step: int, weights: Weights) -> Tensor:
        """Return the mean cross-entropy ``(t,)``, in nats, of the minibatches of step ``step``."""
        count, numbers = tasks.labels.shape[1], [None] if tasks.numbers is None else tasks.numbers
        rows = torch.stack([self.rows(step, count, number) for number in numbers])
        rows = rows.to(tasks.labels.device, non_blocking=True)
        stacked = torch.arange(len(rows), device=rows.device)[:, None]
        images, labels = (
            part[:, rows[0]] if tasks.numbers is None else part[stacked, rows] for part in (tasks.images, tasks.labels)
        )
        return super().loss(model, SupportSet(images, labels, tasks.way), step, weights)

    def rows(self, step: int, count: int, task: int | None = None) -> Tensor:
        """Return which of ``count`` support rows step ``step`` uses; ``task`` is the index of a training task."""
        seed = () if task is None else (self.seed, task)
        size = min(self.batch if self.training else self.test_batch, count)
        first, last = step * size, (step + 1) * size
        orders = range(first // count, -(-last // count))
        # NumPy: under vmap torch would draw another order for each task.
        sequence = np.concatenate([np.random.default_rng([*seed, i]).permutation(count) for i in orders])
        return torch.from_numpy(sequence[first - orders[0] * count :][:size])

    def keep(self, states: Sequence[Weights]) -> None:
        """Add the final second moments of some tasks to those that :func:`~metafew.norms.running.commit` averages."""
        for state in states if self.lasting else ():
            tasks = len(state[self.lasting[0]])  # a number of steps is the same for all of them
            sums = [state[name].sum(0) if state[name].ndim else tasks * state[name] for name in self.lasting]
            total = torch.cat([*(part.flatten() for part in sums), sums[0].new_full((1,), tasks)])
            self.pending = total if self.pending is None else self.pending + total

    def absorb(self, total: Tensor) -> None:
        """Set the buffers to their means, from ``total``: their sums over tasks, then the number of tasks."""
        mean = total[:-1] / total[-1]
        buffers = [getattr(self, entry(name)) for name in self.lasting]
        for buffer, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(kept_finite(part.view_as(buffer), buffer))
        self.pending = None
