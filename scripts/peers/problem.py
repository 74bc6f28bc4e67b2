"""The problem to measure: its sizes, random data that are the same in every process, and its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
BRIEF = 0.05
"""Seconds for which short calls are repeated: a single one would be slowed by caches that other calls emptied."""


@dataclass(frozen=True)
class Setting:
    """Sizes of everything that is measured.

    Attributes:
        backbone: ``conv4``, ``resnet12`` or ``r2d2``.
        width: channels of its first block.
        downsample: ``pool`` or ``stride``, how conv4 halves its maps.
        channels: channels of the images.
        size: their height and width.
        tasks: tasks of a meta-batch.
        way: classes of a task.
        shot: support images of a class.
        query: query images of a class.
        inner: number of inner steps of MAML.
        rate: learning rate of the inner steps.
        heads: the heads whose steps are measured; empty for all.
        solver_tasks: tasks in a batch of a solver.
        solver_shots: support rows of a class for the solvers, one table for each.
        features: dimension of the features for the solvers.
        more_tasks: sizes of the meta-batch for which the time of a step is measured.
        more_ways: numbers of classes for which it is measured.
        memory_tasks: sizes of the meta-batch for which the memory of MAML is measured.
        test_tasks: test tasks of the evaluation.
        draws: meta-batches drawn to measure the memory of the loader.
    """

    backbone: str = "conv4"
    width: int = 64
    downsample: str = "pool"
    channels: int = 1
    size: int = 28
    tasks: int = 4
    way: int = 5
    shot: int = 1
    query: int = 15
    inner: int = 5
    rate: float = 0.4
    heads: tuple[str, ...] = ()
    solver_tasks: int = 8
    solver_shots: tuple[int, ...] = (1, 5, 15)
    features: int = 1600
    more_tasks: tuple[int, ...] = (2, 4, 16, 64)
    more_ways: tuple[int, ...] = (5, 10, 20, 50)
    memory_tasks: tuple[int, ...] = (4, 32)
    test_tasks: int = 1000
    draws: int = 2000

    def __str__(self) -> str:
        """Return the setting of a step in words."""
        images = f"{self.size}x{self.size}x{self.channels}"
        network = self.backbone + ", strided" * (self.downsample == "stride")
        return f"{self.tasks} tasks of {self.way}-way {self.shot}-shot, {self.query} query, {network}, {images}"


@dataclass(frozen=True)
class Tasks:
    """A meta-batch: images ``(t, n, c, h, w)`` and labels ``(t, n)`` of support and query rows."""

    support: Tensor
    labels: Tensor
    query: Tensor
    answers: Tensor

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the four parts of one task after the other."""
        return zip(self.support, self.labels, self.query, self.answers, strict=True)


@dataclass(frozen=True)
class Problem:
    """A setting on a device; weights and data are drawn in torch's default precision, then converted to ``dtype``."""

    setting: Setting
    device: torch.device
    dtype: torch.dtype = torch.float32

    def tasks(self) -> Tasks:
        """Return the meta-batch of every step."""
        s, generator = self.setting, torch.Generator().manual_seed(0)

        def part(count: int) -> tuple[Tensor, Tensor]:
            images = torch.rand(s.tasks, s.way * count, s.channels, s.size, s.size, generator=generator)
            labels = torch.arange(s.way).repeat_interleave(count).repeat(s.tasks, 1)
            return images.to(self.device, self.dtype), labels.to(self.device)

        return Tasks(*part(s.shot), *part(s.query))

    def solved(self, shot: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return features ``(t, n, d)``, labels ``(t, n)`` and the gradient of a solver's solution ``(t, n, w)``."""
        s, generator = self.setting, torch.Generator().manual_seed(shot)
        rows = s.way * shot
        features = torch.randn(s.solver_tasks, rows, s.features, generator=generator).relu()
        slope = torch.randn(s.solver_tasks, rows, s.way, generator=generator)
        labels = torch.arange(s.way).repeat_interleave(shot).repeat(s.solver_tasks, 1)
        return features.to(self.device, self.dtype), labels.to(self.device), slope.to(self.device, self.dtype)


def timed(call: Callable[[], T], device: torch.device, least: float = 0.0) -> tuple[float, T]:
    """Return the mean seconds of a call, repeated for at least ``least`` seconds, and its last result."""
    begin, count, seconds = time.perf_counter(), 0, -1.0
    while seconds < least:
        value = call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        count += 1
        seconds = time.perf_counter() - begin
    return seconds / count, value


class Step(NamedTuple):
    """A step to measure.

    Attributes:
        take: runs the step once and returns its loss or solution.
        network: the module whose gradients the step sets.
    """

    take: Callable[[], Tensor]
    network: nn.Module = nn.Identity()

    def gradient(self) -> float:
        """Return the norm of the gradient of the last step."""
        grads = [p.grad.detach().flatten() for p in self.network.parameters() if p.grad is not None]
        return float(torch.cat(grads).norm()) if grads else 0.0


Steps = dict[str, Step]
