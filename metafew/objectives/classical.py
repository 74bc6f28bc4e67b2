"""Classical training: one classifier of all training classes, without tasks."""

from __future__ import annotations

from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.data.sources import Source
from metafew.episode import Episode
from metafew.heads.head import Head
from metafew.objectives.objective import Objective, check_label_smoothing
from metafew.objectives.regularizers import NoRegularizer, Regularizer


class Classical(Objective):
    """Cross-entropy of a linear layer over all training classes, on minibatches (Goldblum et al. 2020).

    A minibatch is cut into chunks; norms treat each chunk as one task, and all its rows as context. The head is not
    trained; it evaluates the features in validation and test. With a regularizer, minibatches consist of pairs of
    classes with two images each.

    Args:
        regularizer: a term of each chunk's loss.
        label_smoothing: probability mass moved from the true class to the others.
    """

    minibatches = True
    trains_head = False
    needs_queries = False
    splits_batches = False  # one pass per minibatch, as DropBlock counts passes

    def __init__(self, regularizer: NoRegularizer | Regularizer, label_smoothing: float = 0.0):
        super().__init__(regularizer)
        self.label_smoothing = check_label_smoothing(label_smoothing)

    def build(self, backbone: Backbone, source: Source) -> None:
        """Build the classifier of all training classes."""
        self.classifier = nn.Linear(backbone.features, len(source.splits()["train"]))

    def prepare(self, backbone: Backbone, head: Head) -> None:
        """Freeze the head."""
        super().prepare(backbone, head)
        head.requires_grad_(False)

    def task_losses(self, backbone: Backbone, head: Head, episode: Episode) -> Tensor:
        """Return the mean loss of each chunk, ``(t,)``."""
        features, _ = backbone.embed(episode.support.images)
        return self.classify(self.classifier(features), episode.support.labels, self.label_smoothing)

    def pairs(self, backbone: Backbone, episode: Episode) -> Tensor:
        """Return the features ``(t, p, 2, 2, d)`` of the minibatch, which consists of pairs of classes."""
        return backbone.embed(episode.support.images)[0].unflatten(1, (-1, 2, 2))
