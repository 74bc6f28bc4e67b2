"""A training step captured as a CUDA graph: one call issues all of its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.memory import is_oom_error
from torch import Tensor, nn

from metafew.data.minibatches import Minibatches
from metafew.data.task_spec import TaskSpec
from metafew.episode import Episode, Labelled
from metafew.errors import UsageError
from metafew.norms.running import recorders
from metafew.objectives.objective import Objective, StepLoss, with_gradients

WARM_UP = 3
"""Steps before one is captured, in which libraries choose their kernels and allocate their workspaces."""
EXEMPTIONS = ("cuda_graph", "host_waits")
"""Exemptions of modules whose steps cannot be captured."""


@runtime_checkable
class Exempt(Protocol):
    """A module that does not satisfy every contract."""

    exemptions: ClassVar[dict[str, str]]


class Results(NamedTuple):
    """What a training step computes.

    Attributes:
        loss: the loss of the meta-batch and those of its tasks.
        gradients: the gradient of each weight, None where the loss does not depend on it.
        accuracy: on the rows that enter the loss, or None.
        moments: what modules record for the update of their running state.
    """

    loss: StepLoss
    gradients: Sequence[Tensor | None]
    accuracy: Tensor | None
    moments: dict[Any, Tensor]


@dataclass
class Captured:
    """A captured step.

    Attributes:
        shape: that of its meta-batch.
        inputs: the tensors that it reads.
        weights: the parameters that it differentiates.
        results: where it writes.
        graph: computes the results.
    """

    shape: tuple
    inputs: list[Tensor]
    weights: list[nn.Parameter]
    results: Results
    graph: torch.cuda.CUDAGraph


class GraphedStep:
    """Compute the loss of a meta-batch and its gradients by replaying a CUDA graph.

    A step of a small network consists of about a thousand short operations, and Python takes longer to issue them than
    a GPU to compute them. The first step is captured, and all steps of its shape replay it; steps of another shape are
    computed directly. Numbers that Python computes during a step are captured too, and stay what they were.

    Args:
        model: the module whose parameters are differentiated and whose running state is updated.
        direct: computes the loss of a meta-batch.
        objective: measures the accuracy while ``direct`` runs.
    """

    def __init__(self, model: nn.Module, direct: Callable[[list[Episode]], StepLoss], objective: Objective):
        self.model, self.direct, self.objective = model, direct, objective
        self.captured: Captured | None = None

    def __call__(self, batch: list[Episode]) -> StepLoss:
        """Return the loss of a meta-batch.

        Raises:
            UsageError: if the step cannot be captured.
        """
        if self.captured is None:
            self.captured = self._capture(batch)
        step = self.captured
        if step.shape != shape_of(batch):
            return self.direct(batch)
        for kept, value in zip(step.inputs, inputs_of(batch), strict=True):
            kept.copy_(value)
        step.graph.replay()
        loss, gradients, accuracy, moments = step.results
        for module, sums in moments.items():
            module.gather(sums.clone())
        self.objective.accuracy = None if accuracy is None else accuracy.clone()
        return StepLoss(with_gradients(loss.loss, step.weights, gradients), loss.task_losses.clone())

    def free(self) -> None:
        """Free the memory of the captured step."""
        self.captured = None

    def _capture(self, batch: list[Episode]) -> Captured:
        kept = [copied(episode) for episode in batch]
        weights = [p for p in self.model.parameters() if p.requires_grad]

        def step() -> Results:
            for module in recorders(self.model):
                module.pending = None
            torch.clear_autocast_cache()  # so that the graph itself converts the weights
            loss, task_losses = self.direct(kept)
            with torch.autocast(loss.device.type, enabled=False):  # as in Lightning's backward pass
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            moments = {module: module.pending for module in recorders(self.model)}
            return Results(StepLoss(loss.detach(), task_losses), gradients, self.objective.accuracy, moments)

        before = {module: module.pending for module in recorders(self.model)}
        with unchanged_state(self.model):
            results, graph = capture(step)
        for module in [*before, *results.moments]:
            module.pending = before.get(module)
        return Captured(shape_of(batch), [*inputs_of(kept)], weights, results, graph)


def shape_of(batch: list[Episode]) -> tuple:
    """Return what meta-batches must share for the same captured step."""
    return tuple((episode.way, *((x.shape, x.dtype) for x in inputs_of([episode]))) for episode in batch)


def copied(episode: Episode) -> Episode:
    """Return what a training step reads of an episode whose views have been applied, in memory of its own."""
    support, query = (Labelled(part.images.clone(), part.labels.clone()) for part in (episode.support, episode.query))
    return Episode(support, query, episode.way, episode.index, source=episode.source)


def inputs_of(batch: list[Episode]) -> Iterator[Tensor]:
    """Yield the images and labels of a meta-batch."""
    for episode in batch:
        yield from (*episode.support, *episode.query)


def capture(step: Callable[[], Results]) -> tuple[Results, torch.cuda.CUDAGraph]:
    """Return the results of ``step``, whose values each replay of the graph computes, and the graph.

    Raises:
        UsageError: if the operations cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        # Meanwhile, other threads, such as one that pins memory, may call what a capture does not allow.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = step()
    except RuntimeError as error:
        first: BaseException = error
        while first.__context__ is not None:  # ending a failed capture raises another error
            first = first.__context__
        if is_oom_error(first):
            raise
        reason = " ".join(str(first).split("\n")[0].split()) or type(first).__name__
        raise UsageError(
            f"expected a step that a CUDA graph can capture for cuda_graph=true, got one that it cannot ({reason}): "
            "type cuda_graph=false"
        ) from error
    return results, graph


@contextmanager
def unchanged_state(model: nn.Module) -> Iterator[None]:
    """Restore the buffers of ``model``, such as the running moments of ``nn.BatchNorm2d``, and the random numbers."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
    for buffer, value in buffers:
        buffer.copy_(value)


def check_graph(learner: Any, tasks: TaskSpec | Minibatches, trainer: pl.Trainer) -> None:
    """Check that the training steps of a run can be captured, if it is to capture them.

    Args:
        learner: the LightningModule.
        tasks: what it trains on.
        trainer: the Trainer.

    Raises:
        UsageError: if there is no GPU, steps differ in shape, or a step reads values of the GPU or computes with
            numbers that change.
    """
    if learner.graphed is None:
        return
    if (kind := trainer.strategy.root_device.type) != "cuda":
        raise UsageError(f"expected a GPU for cuda_graph=true, got {kind}: type cuda_graph=false")
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise UsageError(
            f"expected a precision without a gradient scaler for cuda_graph=true, got {trainer.precision}: type "
            "trainer.precision=bf16-mixed"
        )
    if isinstance(tasks, TaskSpec) and len({*tasks.images}) > 1:
        raise UsageError(
            f"expected training tasks of one shape for cuda_graph=true, got train.way={tasks.way} and "
            f"train.shot={tasks.shot}: type train.way=5 train.shot=1, or cuda_graph=false"
        )
    check_capturable(learner)


def check_capturable(learner: Any) -> None:
    """Raise UsageError if a module gives a reason why the training steps that it takes part in cannot be captured."""
    trained = [learner.heads[learner.trained]] * learner.objective.trains_head
    for module in (m for part in (learner.backbone, learner.objective, *trained) for m in part.modules()):
        reasons = module.exemptions if isinstance(module, Exempt) else {}
        if found := [reasons[key] for key in EXEMPTIONS if key in reasons]:
            raise UsageError(
                "expected training steps that a CUDA graph can capture for cuda_graph=true, got "
                f"{type(module).__name__} ({found[0]}): type cuda_graph=false"
            )
