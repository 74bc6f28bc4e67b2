"""What a training step minimises. An objective returns a scalar whose ``.backward()`` gives the meta-gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Episode
from metafew.errors import UsageError


class Episodic(nn.Module):
    """Cross-entropy on the queries after the head saw the support set: the loss of meta-learning.

    The mean over the queries of a task, then over all tasks of the meta-batch. (Algorithm 1 of Goldblum et al. 2020
    sums over tasks: its outer learning rate is ours divided by the number of tasks.)

    Args:
        label_smoothing: probability mass taken from the true class and spread over the others; Lee et al. (2019)
            use 0.1 for ResNet-12.
    """

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        if not 0 <= label_smoothing < 0.5:
            raise UsageError(
                f"objective.label_smoothing is from 0 to less than 0.5, not {label_smoothing}: "
                "type objective.label_smoothing=0.1"
            )
        self.label_smoothing = label_smoothing

    def forward(self, backbone: Backbone, head: nn.Module, batch: list[Episode]) -> Tensor:
        """Return the mean loss over the tasks of ``batch``."""
        losses = [self._losses(backbone, head, episode) for episode in batch]
        return torch.cat(losses).mean()

    def _losses(self, backbone: Backbone, head: nn.Module, episode: Episode) -> Tensor:
        """Return one loss a task."""
        logits = head(backbone, episode.support, episode.query.images, episode.way)
        # torch spreads its mass over all classes, the true one included; Lee et al. over the others only
        smoothing = self.label_smoothing * episode.way / (episode.way - 1)
        loss = F.cross_entropy(logits.mT, episode.query.labels, reduction="none", label_smoothing=smoothing)
        return loss.mean(1)
