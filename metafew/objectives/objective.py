"""The base class of objectives, which handles chunks of tasks, penalties, regularizers and frozen weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.optim import SGD, Optimizer

from metafew.backbones.backbone import Backbone
from metafew.data.sources import Source
from metafew.episode import Episode
from metafew.errors import UsageError, reason
from metafew.heads.head import FeatureHead, Head
from metafew.heads.shared_features import SharedFeatures
from metafew.objectives.clustering import draw_pairs
from metafew.objectives.regularizers import NoRegularizer, Regularizer
from metafew.predictions import answers

log = logging.getLogger(__name__)

PIXELS = 2**18
"""Maximum number of pixels embedded at once on a CPU: 4 tasks of 80 images of 28 x 28, or one task of 84 x 84. With
fewer, the fixed cost of a pass dominates; more need more memory and are slower."""


class StepLoss(NamedTuple):
    """The loss of a meta-batch.

    Attributes:
        loss: a scalar whose ``.backward()`` gives the meta-gradient.
        task_losses: ``(t,)`` the loss of each task, in the order of the meta-batch, detached.
    """

    loss: Tensor
    task_losses: Tensor


class Objective(nn.Module):
    """The loss that a training step minimises. Subclasses implement :meth:`task_losses`, with one loss per task.

    The loss of a meta-batch is the mean over its tasks, plus the penalty of the trained head. Tasks are differentiated
    a few at a time if a head adapts the backbone (see its option ``inner``), and on a CPU (:data:`PIXELS`), so that
    memory does not grow with the meta-batch; norms that couple tasks require all tasks at once.

    A regularizer of features uses pairs of classes from each task (:meth:`pairs`), with the features that enter the
    loss or, for a head that does not work on features, the features before adaptation.

    Args:
        regularizer: a term of each task's loss (:mod:`metafew.objectives.regularizers`).
    """

    minibatches: bool = False
    """Whether it trains on images of all classes (:mod:`metafew.data.minibatches`) instead of tasks."""
    trains_head: bool = True
    """Whether the head takes part in training."""
    needs_queries: bool = True
    """Whether training tasks need queries."""
    splits_batches: bool = True
    """Whether tasks may be differentiated a few at a time."""
    regularizes_weights: bool = False
    """Whether a regularizer of adapted weights applies."""
    exemptions: ClassVar[dict[str, str]] = {}
    """Contracts of tests/contracts/objectives.py that the objective does not satisfy, each with the reason."""
    measures_accuracy: bool = True
    """Whether to measure :attr:`accuracy`, which a training step needs only if it logs."""
    accuracy: Tensor | None = None
    """Mean accuracy on the rows of the latest meta-batch that enter the loss; None if the objective does not classify
    them by :meth:`classify`, or does not measure it."""
    loss_scale: float | Tensor = 1.0
    """Factor of losses while the objective computes gradients itself, against underflow in float16."""

    def __init__(self, regularizer: NoRegularizer | Regularizer):
        super().__init__()
        self.regularizer = regularizer
        self._accuracies: list[Tensor] = []

    def build(self, backbone: Backbone, source: Source) -> None:
        """Build what depends on the backbone or on the classes of ``source``; called once, after construction."""

    def prepare(self, backbone: Backbone, head: Head) -> None:
        """Prepare both for training: check compatibility, and freeze parameters that the loss does not depend on.

        Raises:
            UsageError: if objective, regularizer and head are incompatible.
        """
        if self.trains_head:
            check_one_rate(head)
        if self.regularizer.on_features and not any(weight.requires_grad for weight in backbone.parameters()):
            log.warning("regularizer has no effect here, as the backbone, on whose features it acts, is frozen")
        if self.regularizer.on_weights and not self.regularizes_weights:
            raise UsageError(
                "expected a regularizer of features, got regularizer=weight_clustering, which acts in the inner loop "
                "of objective=reptile: type head=reptile, or regularizer=feature_clustering"
            )

    def advise(self, optimizer: Optimizer) -> None:
        """Log a warning if ``optimizer`` does not suit this objective."""
        group = optimizer.param_groups[0]
        if type(optimizer) is SGD and not group["momentum"] and group["lr"] >= 1:
            log.warning(
                "plain SGD with a learning rate of %g is the outer step of objective=reptile, and this one descends a "
                "loss: type optimizer=adam",
                group["lr"],
            )

    def forward(self, backbone: Backbone, head: Head, batch: list[Episode]) -> StepLoss:
        """Return the loss of a meta-batch."""
        self._accuracies.clear()
        mean, task_losses = self.batch_losses(backbone, head, batch)
        self.accuracy = torch.cat(self._accuracies).mean() if self._accuracies else None
        return StepLoss(mean + head.penalty() if self.trains_head else mean, task_losses)

    def task_losses(self, backbone: Backbone, head: Head, episode: Episode) -> Tensor:
        """Return one loss for each task, ``(t,)``, without the regularizer.

        Args:
            backbone: the feature extractor; for heads on features, one that embeds the images of the episode only once.
            head: the trained head.
            episode: some tasks of the meta-batch.
        """
        raise NotImplementedError

    def classify(self, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Return the mean :func:`cross_entropy` of each task, ``(t,)``, and record the accuracy if it is measured.

        Args:
            logits: ``(t, n, w)``.
            labels: ``(t, n)``.
            label_smoothing: probability mass moved from the true class to the others.
        """
        if self.measures_accuracy:
            exact = torch.promote_types(logits.dtype, torch.float32)  # under autocast, too
            self._accuracies.append((answers(logits.detach()) == labels).to(exact).mean(1))
        return cross_entropy(logits, labels, label_smoothing).mean(1)

    def pairs(self, backbone: Backbone, episode: Episode) -> Tensor:
        """Return features ``(t, p, 2, 2, d)`` of pairs of classes with two images each, for the regularizer."""
        features = backbone.embed(episode.support.images, episode.query.images, record=False)
        labels = torch.cat([episode.support.labels, episode.query.labels], 1)
        return draw_pairs(torch.cat(features, 1), labels, episode.index)

    def batch_losses(self, backbone: Backbone, head: Head, batch: list[Episode]) -> StepLoss:
        """Return the mean over tasks and the loss of each task. Override if tasks cannot be split into chunks."""
        tasks = sum(len(episode.index) for episode in batch)
        trained, pieces = head if self.trains_head else None, batch
        if self.splits_batches:
            pieces = [
                piece for episode in batch for piece in episode.split(tasks_per_chunk(backbone, trained, episode))
            ]
        seen: list[Tensor] = []

        def shares() -> Iterator[Tensor]:
            for piece in pieces:
                losses = self._regularized(backbone, head, piece)
                seen.append(losses.detach())
                yield losses.sum() / tasks

        adapts = trained is not None and trained.adapts_backbone
        if torch.is_grad_enabled() and self.splits_batches and (adapts or len(pieces) > 1):
            modules = (backbone, head, self) if self.trains_head else (backbone, self)
            weights = [p for m in modules for p in m.parameters() if p.requires_grad]
            with twice_differentiable() if adapts else nullcontext():
                mean = in_turn(shares(), weights, self.loss_scale)
        else:
            mean = reduce(torch.add, shares())
        return StepLoss(mean, torch.cat(seen))

    def _regularized(self, backbone: Backbone, head: Head, episode: Episode) -> Tensor:
        if isinstance(head, FeatureHead) or not self.trains_head:
            backbone = cast(Backbone, SharedFeatures(backbone, episode))
        losses = self.task_losses(backbone, head, episode)
        return losses + self.regularizer(self.pairs(backbone, episode)) if self.regularizer.on_features else losses


def tasks_per_chunk(backbone: Backbone, head: Head | None, episode: Episode) -> int | None:
    """Return the number of tasks of an episode that are differentiated together; None for all.

    Args:
        backbone: the feature extractor.
        head: the trained head, if any.
        episode: tasks of the meta-batch.
    """
    support, query = episode.support.images, episode.query.images
    if head is not None and head.adapts_backbone:
        return head.tasks_per_chunk(backbone, support, query)
    if query.device.type != "cpu" or backbone.couples_tasks:
        return None
    return max(1, PIXELS // (support[0, :, 0].numel() + query[0, :, 0].numel()))


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Raise UsageError if a network has an operation without a second derivative, of which PyTorch has some."""
    try:
        yield
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        raise UsageError(
            "expected a network whose gradients can be differentiated, got one with an operation that has none "
            f"({reason(error)}): type head.first_order=true"
        ) from error


def in_turn(losses: Iterable[Tensor], weights: list[nn.Parameter], scale: float | Tensor) -> Tensor:
    """Return the sum of ``losses`` with its gradient, differentiating one loss at a time.

    The graph of a loss is freed before the next loss is computed.

    Args:
        losses: computed one at a time.
        weights: parameters to differentiate with respect to.
        scale: factor of each loss while its gradient is computed.
    """
    values: list[Tensor] = []
    grads: list[Tensor | None] = [None] * len(weights)
    for loss in losses:
        with torch.autocast(loss.device.type, enabled=False):  # as in Lightning's backward pass
            parts = torch.autograd.grad(loss * scale, weights, allow_unused=True)
        grads = [b if a is None else a if b is None else a + b for a, b in zip(grads, parts, strict=True)]
        values.append(loss.detach())
    unscaled = [None if g is None else g / scale for g in grads]
    return with_gradients(reduce(torch.add, values), weights, unscaled)


def with_gradients(value: Tensor, weights: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Return ``value`` as a function of ``weights`` with these gradients; None for weights that it does not depend on.

    Args:
        value: a scalar.
        weights: what it is differentiated with respect to, once.
        gradients: of the shapes of the weights.
    """
    pairs = [(p, g) for p, g in zip(weights, gradients, strict=True) if g is not None]
    return GivenGradients.apply(value, [g for _, g in pairs], *(p for p, _ in pairs))


class GivenGradients(Function):
    """See :func:`with_gradients`."""

    @staticmethod
    def forward(ctx, value: Tensor, gradients: list[Tensor], *weights: Tensor) -> Tensor:
        """Return the value."""
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, multiplied by that of the value."""
        return None, None, *(grad * each for each in ctx.gradients)


def check_one_rate(head: Head) -> None:
    """Raise UsageError if a trained head has several inner learning rates."""
    if len(lrs := head.learning_rates) > 1:
        raise UsageError(
            f"expected one head.lr to train with, got {[*lrs]}: a list of head.lr is for evaluation: "
            f"type head.lr={lrs[0]}"
        )


def check_label_smoothing(label_smoothing: float) -> float:
    """Return ``label_smoothing``; raise UsageError if it is out of range."""
    if not 0 <= label_smoothing < 0.5:
        raise UsageError(
            f"expected objective.label_smoothing to be from 0 to less than 0.5, got {label_smoothing}: "
            "type objective.label_smoothing=0.1"
        )
    return label_smoothing


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Return the cross-entropy of each row, in nats.

    Smoothing moves probability mass from the true class to the others (Lee et al. 2019); torch distributes it over all
    classes, including the true one.

    Args:
        logits: ``(t, n, w)``.
        labels: ``(t, n)``.
        label_smoothing: the mass.
    """
    way = logits.shape[-1]
    return F.cross_entropy(logits.mT, labels, reduction="none", label_smoothing=label_smoothing * way / (way - 1))
