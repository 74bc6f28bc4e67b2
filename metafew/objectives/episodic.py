"""Meta-learning: the loss on queries, given the support set."""

from __future__ import annotations

from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.episode import Episode
from metafew.heads.head import Head
from metafew.objectives.objective import Objective, check_label_smoothing
from metafew.objectives.regularizers import NoRegularizer, Regularizer


class Episodic(Objective):
    """Cross-entropy of a head's logits, averaged over the queries of each task.

    Algorithm 1 of Goldblum et al. (2020) sums over tasks, so its outer learning rate is ours divided by the number of
    tasks.

    Args:
        regularizer: a term of each task's loss.
        label_smoothing: probability mass moved from the true class to the others; Lee et al. (2019) use 0.1 for
            ResNet-12.
    """

    def __init__(self, regularizer: NoRegularizer | Regularizer, label_smoothing: float = 0.0):
        super().__init__(regularizer)
        self.label_smoothing = check_label_smoothing(label_smoothing)

    def task_losses(self, backbone: Backbone, head: Head, episode: Episode) -> Tensor:
        """Return the mean loss on the queries of each task, ``(t,)``."""
        logits = head(backbone, episode.support, episode.query.images, episode.way)
        return self.classify(logits, episode.query.labels, self.label_smoothing)
