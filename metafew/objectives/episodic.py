"""Meta-learning: the loss on queries after a head saw the support set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Episode
from metafew.heads.head import FeatureHead
from metafew.objectives.clustering import draw_pairs
from metafew.objectives.objective import Objective, checked, cross_entropy

PIXELS = 2**18
"""How many pixels the images of the tasks have that a CPU embeds at once: 4 tasks of 80 images of 28 x 28, or one of
84 x 84. Of fewer the fixed cost weighs more; more take memory and are slower."""


class Episodic(Objective):
    """Cross-entropy on the queries after the head saw the support set: the loss of meta-learning.

    The mean over the queries of a task, then over all tasks of the meta-batch. (Algorithm 1 of Goldblum et al. 2020
    sums over tasks: its outer learning rate is ours divided by the number of tasks.)

    Tasks are differentiated a few at a time where a head adapts the backbone, and on a CPU (:data:`PIXELS`), so that
    memory does not grow with the meta-batch. Norms that couple tasks see all at once.

    A regularizer takes pairs of classes out of the support and query rows of each task, in the features that a head on
    features sees; of a head that adapts the backbone, in the features before adaptation.

    Args:
        regularizer: a term of the loss.
        label_smoothing: probability mass taken from the true class and spread over the others; Lee et al. (2019)
            use 0.1 for ResNet-12.
    """

    def __init__(self, regularizer: nn.Module, label_smoothing: float = 0.0):
        super().__init__(regularizer)
        self.label_smoothing = checked(label_smoothing)

    def forward(self, backbone: Backbone, head: nn.Module, batch: list[Episode]) -> Tensor:
        """Return the mean loss over the tasks of ``batch``."""
        self.latest = []
        tasks = sum(len(episode.index) for episode in batch)
        pieces = [piece for episode in batch for piece in episode.split(tasks_at_once(backbone, head, episode))]
        losses = (self.noted(self._losses(backbone, head, piece)).sum() / tasks for piece in pieces)
        if torch.is_grad_enabled() and (head.adapts_backbone or len(pieces) > 1):
            weights = [p for p in (*backbone.parameters(), *head.parameters()) if p.requires_grad]
            loss = in_turn(losses, weights, self.loss_scale)
        else:
            loss = sum(losses)
        return loss + head.penalty() if hasattr(head, "penalty") else loss

    def _losses(self, backbone: Backbone, head: nn.Module, episode: Episode) -> Tensor:
        """Return one loss a task."""
        support, query = episode.support, episode.query
        on_features = isinstance(head, FeatureHead)
        if on_features:
            features = backbone.embed(support.images, query.images)
            logits = head.label(features[0], support.labels, features[1], episode.way)
        else:
            logits = head(backbone, support, query.images, episode.way)
        losses = cross_entropy(logits, query.labels, self.label_smoothing).mean(1)
        if not self.regularizer.on_features:
            return losses
        if not on_features:
            features = backbone.embed(support.images, query.images, record=False)
        pairs = draw_pairs(torch.cat(features, 1), torch.cat([support.labels, query.labels], 1), episode.index)
        return losses + self.regularizer(pairs)


def tasks_at_once(backbone: Backbone, head: nn.Module, episode: Episode) -> int | None:
    """Return how many tasks of an episode are differentiated together; None for all."""
    support, query = episode.support.images, episode.query.images
    if head.adapts_backbone:
        return head.tasks_at_once(query.device)
    if query.device.type != "cpu" or backbone.couples_tasks:
        return None
    return max(1, PIXELS // (support[0, :, 0].numel() + query[0, :, 0].numel()))


def in_turn(losses: Iterable[Tensor], weights: list[nn.Parameter], scale: float | Tensor) -> Tensor:
    """Return the sum of ``losses`` with its gradient, having differentiated one after the other.

    The graph of a loss is gone before the next is computed. The gradients ``g`` come back as those of
    ``sum((p - stopgrad(p)) * g)``, which is 0.

    Args:
        losses: computed one at a time.
        weights: what gradients are wanted of.
        scale: factor of each loss while its gradient is taken.
    """
    total, grads = 0.0, [None] * len(weights)
    for loss in losses:
        parts = torch.autograd.grad(loss * scale, weights, allow_unused=True)
        grads = [b if a is None else a if b is None else a + b for a, b in zip(grads, parts, strict=True)]
        total = total + loss.detach()
    for p, g in zip(weights, grads, strict=True):
        if g is not None:
            total = total + ((p - p.detach()) * (g / scale)).sum()
    return total
