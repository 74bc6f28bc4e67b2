"""Classical training: one classifier of all training classes, no tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Episode
from metafew.objectives.objective import Objective, checked, cross_entropy


class Classical(Objective):
    """Cross-entropy of a linear layer over all training classes, on minibatches (Goldblum et al. 2020, transfer
    learning).

    A minibatch is cut into chunks, each a task to every norm, and all its rows are context. The head plays no part in
    training; it measures the features in validation and test. A regularizer gets minibatches of pairs of classes, two
    images each.

    Args:
        regularizer: a term of the loss.
        features: dimension of the features.
        classes: number of training classes.
        label_smoothing: probability mass taken from the true class and spread over the others.
    """  # noqa: D205

    minibatches = True
    trains_head = False
    needs_queries = False

    def __init__(self, regularizer: nn.Module, features: int, classes: int, label_smoothing: float = 0.0):
        super().__init__(regularizer)
        self.classifier = nn.Linear(features, classes)
        self.label_smoothing = checked(label_smoothing)

    def prepare(self, backbone: Backbone, head: nn.Module) -> None:
        """Freeze the head."""
        super().prepare(backbone, head)
        head.requires_grad_(False)

    def forward(self, backbone: Backbone, head: nn.Module, batch: list[Episode]) -> Tensor:
        """Return the mean loss over all rows of ``batch``."""
        self.latest = []
        return self.noted(torch.cat([self._losses(backbone, episode) for episode in batch])).mean()

    def _losses(self, backbone: Backbone, episode: Episode) -> Tensor:
        """Return one loss a chunk."""
        features, _ = backbone.embed(episode.support.images)
        losses = cross_entropy(self.classifier(features), episode.support.labels, self.label_smoothing).mean(1)
        if self.regularizer.on_features:
            losses = losses + self.regularizer(features.unflatten(1, (-1, 2, 2)))
        return losses
