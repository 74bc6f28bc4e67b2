"""A training step recorded as a CUDA graph: one call issues all of its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.norms.running import recorders
from metafew.objectives.objective import StepLoss, with_gradients

WARM_UP = 3
"""Steps before one is recorded, in which libraries choose their kernels and allocate their workspaces."""
EXEMPTIONS = ("cuda_graph", "host_waits")
"""Exemptions of modules whose steps cannot be recorded."""
DIRECTLY = "type cuda_graph=false"


@runtime_checkable
class Exempt(Protocol):
    """A module that does not satisfy every contract."""

    exemptions: ClassVar[dict[str, str]]


@dataclass
class Recorded:
    """A recorded step.

    Attributes:
        inputs: the tensors that it reads.
        graph: computes everything below from them, into the same memory each time.
        loss: the loss of the meta-batch and those of its tasks.
        gradients: the gradient of each parameter, None where the loss does not depend on it.
        moments: what modules record for the update of their running state.
    """

    inputs: list[Tensor]
    graph: torch.cuda.CUDAGraph
    loss: StepLoss
    gradients: Sequence[Tensor | None]
    moments: dict[Any, Tensor]


class GraphedStep:
    """Compute the loss of a meta-batch and its gradients by replaying a CUDA graph.

    A step of a small network consists of hundreds of short operations, and Python takes longer to issue them than a GPU
    to compute them. The first step with a meta-batch of a given shape is recorded; all steps of that shape replay it.
    Numbers that Python computes during a step are recorded too, and stay what they were.

    Args:
        model: the module whose parameters are differentiated and whose running state is updated.
        loss_of: computes the loss of a meta-batch.
    """

    def __init__(self, model: nn.Module, loss_of: Callable[[list[Episode]], StepLoss]):
        self.model, self.loss_of = model, loss_of
        self.recorded: dict[tuple, Recorded] = {}
        self.pool: Any = None

    def __call__(self, batch: list[Episode]) -> StepLoss:
        """Return the loss of a meta-batch.

        Raises:
            UsageError: if a step cannot be recorded.
        """
        shape = tuple(
            (episode.way, episode.source, *((x.shape, x.dtype) for x in inputs_of([episode]))) for episode in batch
        )
        if shape not in self.recorded:
            self.recorded[shape] = self._record(batch)
        step = self.recorded[shape]
        for kept, value in zip(step.inputs, inputs_of(batch), strict=True):
            kept.copy_(value)
        step.graph.replay()
        for module, sums in step.moments.items():
            module.gather(sums.clone())
        loss = with_gradients(step.loss.loss, self._parameters, step.gradients)
        return StepLoss(loss, step.loss.task_losses.clone())

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _record(self, batch: list[Episode]) -> Recorded:
        kept = [copied(episode) for episode in batch]

        def step() -> tuple[StepLoss, Sequence[Tensor | None], dict[Any, Tensor]]:
            for module in recorders(self.model):
                module.pending = None
            torch.clear_autocast_cache()  # so that the graph itself converts the weights
            loss, task_losses = self.loss_of(kept)
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            moments = {module: module.pending for module in recorders(self.model)}
            return StepLoss(loss.detach(), task_losses), gradients, moments

        before = {module: module.pending for module in recorders(self.model)}
        try:
            with unchanged_buffers(self.model):
                results, graph = record(step, self.pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(
                f"expected a step that a CUDA graph can record for cuda_graph=true, got one that it cannot ({reason}): "
                f"{DIRECTLY}"
            ) from error
        for module in [*before, *results[2]]:
            module.pending = before.get(module)
        self.pool = graph.pool()
        return Recorded([*inputs_of(kept)], graph, *results)


def copied(episode: Episode) -> Episode:
    """Return what a training step reads of an episode whose views have been applied, in memory of its own."""
    support, query = (Labelled(part.images.clone(), part.labels.clone()) for part in (episode.support, episode.query))
    return Episode(support, query, episode.way, episode.index, source=episode.source)


def inputs_of(batch: list[Episode]) -> Iterator[Tensor]:
    """Yield the images and labels of a meta-batch."""
    for episode in batch:
        yield from (*episode.support, *episode.query)


def record(step: Callable[[], Any], pool: Any) -> tuple[Any, torch.cuda.CUDAGraph]:
    """Return the results of ``step``, whose values each replay of the graph computes, and the graph.

    Args:
        step: issues the operations, without reading a value of the GPU.
        pool: memory that graphs which are not replayed at the same time share; None for new memory.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Meanwhile, other threads, such as one that pins memory, may call what a recording does not allow.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        results = step()
    return results, graph


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of ``model``, such as the running moments of ``nn.BatchNorm2d``, and the random numbers."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng():
        yield
    for buffer, value in buffers:
        buffer.copy_(value)


def check_graph(learner: Any, trainer: pl.Trainer) -> None:
    """Check that the training steps of a run can be recorded, if it is to record them.

    Raises:
        UsageError: if there is no GPU, or a step reads its values or computes with numbers that change.
    """
    if learner.graphed is None:
        return
    if (kind := trainer.strategy.root_device.type) != "cuda":
        raise UsageError(f"expected a GPU for cuda_graph=true, got {kind}: {DIRECTLY}")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise UsageError(
            f"expected a precision without a gradient scaler for cuda_graph=true, got {trainer.precision}: type "
            "trainer.precision=bf16-mixed"
        )
    check_recordable(learner)


def check_recordable(model: nn.Module) -> None:
    """Raise UsageError if a module gives a reason why its training steps cannot be recorded."""
    for module in model.modules():
        reasons = module.exemptions if isinstance(module, Exempt) else {}
        if found := [reasons[key] for key in EXEMPTIONS if key in reasons]:
            raise UsageError(
                f"expected training steps that a CUDA graph can record for cuda_graph=true, got "
                f"{type(module).__name__} ({found[0]}): {DIRECTLY}"
            )
