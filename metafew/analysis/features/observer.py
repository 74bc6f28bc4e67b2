"""Collect the features, predictions and weight distances of one checkpoint on its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from metafew.analysis.features.sufficient_condition import epsilon, one_shot_accuracy
from metafew.analysis.features.weight_distance import adaptation_distances, adapts_by_gradient
from metafew.backbones.backbone import Backbone
from metafew.data.sampler import Sampler
from metafew.episode import Episode
from metafew.evaluation.evaluator import Evaluator
from metafew.evaluation.feature_cache import CACHE_BYTES, FeatureCache, empty_of, parts, rows
from metafew.heads.head import FeatureHead, Head
from metafew.heads.shared_features import SharedFeatures
from metafew.objectives.clustering import draw_pairs, pairwise
from metafew.precision import precise
from metafew.predictions import answers


class Observed(NamedTuple):
    """The features and predictions of one task, on the CPU.

    Attributes:
        number: the index of the task in its split.
        pairs: each measure of :func:`~metafew.objectives.clustering.pairwise` by name, for each pair of classes.
        condition: ``eps`` and one-shot accuracy over all images of the task, for each pair of classes.
        features: ``(n, d)`` of support and query rows.
        classes: ``(n,)``, the class numbers in the split.
        labels: ``(q,)``, the true labels of the queries.
        guesses: ``(q,)``, the :func:`~metafew.predictions.answers` of the trained head.
        travel: the :func:`~metafew.analysis.features.weight_distance.distances`; empty for heads that do not adapt the
            backbone.
    """

    number: int
    pairs: list[dict[str, float]]
    condition: list[tuple[float, float]]
    features: Tensor
    classes: Tensor
    labels: Tensor
    guesses: Tensor
    travel: dict[str, float]


class Observer(pl.LightningModule):
    """A module for ``trainer.predict`` that observes tasks with the model of a run in eval mode.

    Args:
        learner: the model.
        sampler: draws the tasks.

    Attributes:
        split_features: features and class numbers of every image of the split; None if features depend on the task.
    """

    def __init__(self, learner: Evaluator, sampler: Sampler):
        super().__init__()
        self.learner, self.sampler = learner, sampler
        self.numbers = class_numbers(sampler)
        self.split_features: tuple[Tensor, Tensor] | None = None

    @property
    def head(self) -> Head:
        """The trained head."""
        return self.learner.heads[self.learner.trained]

    def on_predict_epoch_start(self) -> None:
        """Embed the entire split if features do not depend on the task."""
        backbone = self.learner.backbone
        self.learner.base_mean.update(backbone, self.trainer)
        with self.trainer.precision_plugin.forward_context():
            self.split_features = embed_split(backbone, self.sampler, like=empty_of(self))

    def predict_step(self, batch: list[Episode], _: int) -> list[Observed]:
        """Return the observation of each task of the batch."""
        return [task for episode in batch for task in self._observe(episode)]

    def _observe(self, episode: Episode) -> list[Observed]:
        backbone, head = self.learner.backbone, self.head
        support, query = episode.support, episode.query
        shared = SharedFeatures(backbone, episode)
        embedded = shared.embed(support.images, query.images)
        logits = head(shared if isinstance(head, FeatureHead) else backbone, support, query.images, episode.way)
        count = len(episode.index)
        moved: list[dict[str, float]] = [{}] * count
        if adapts_by_gradient(head):
            moved = adaptation_distances(head, backbone, support, episode.way)
        features = precise(torch.cat(embedded, 1)).cpu()
        labels = torch.cat([support.labels, query.labels], 1).cpu()
        assert episode.ids is not None  # set by the task sampler
        classes = self.numbers[episode.source][torch.cat(episode.ids, 1).cpu()]
        return [
            Observed(
                int(episode.index[task]),
                pairwise(draw_pairs(features[task, None], labels[task, None], episode.index[task, None])[0]),
                conditions(features[task], labels[task], episode.way),
                features[task],
                classes[task],
                query.labels[task].cpu(),
                answers(logits[task]).cpu(),
                moved[task],
            )
            for task in range(count)
        ]


def conditions(features: Tensor, labels: Tensor, way: int) -> list[tuple[float, float]]:
    """Return ``eps`` and one-shot accuracy of classes 0 and 1, 2 and 3, ...; classes are in random order in a task."""
    found = []
    for first in range(0, way - 1, 2):
        x, y = (features[labels == c].numpy() for c in (first, first + 1))
        found.append((epsilon(x, y), one_shot_accuracy(x, y)))
    return found


def class_numbers(sampler: Sampler) -> list[Tensor]:
    """Return, for each dataset of a mixture, the class numbers of its images, indexed as ``Episode.ids``."""
    numbers, seen = [], 0
    for part in parts(sampler):
        split = part.split
        found = np.full(rows(split), -1)
        for c, (images, turns) in enumerate(zip(split.rows, split.turns, strict=True)):
            found[split.ids(images, turns)] = seen + c
        numbers.append(torch.from_numpy(found))
        seen += len(split.names)
    return numbers


def embed_split(backbone: Backbone, sampler: Sampler, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the features ``(n, d)`` and class numbers ``(n,)`` of every image of a split, on the CPU.

    Return None if features depend on other images or on random views, or would not fit in memory.

    Args:
        backbone: the backbone, in eval mode.
        sampler: draws tasks from the split, or from the splits of a mixture.
        like: a tensor of the model, for device and precision.
    """
    samplers = parts(sampler)
    size = 4 * backbone.features * sum(rows(part.split) for part in samplers)
    if not backbone.per_image or any(part.views for part in samplers) or size > CACHE_BYTES:
        return None
    features = precise(torch.cat(FeatureCache(backbone, sampler, like).tables)).cpu()
    classes = torch.cat(class_numbers(sampler))
    return features[classes >= 0], classes[classes >= 0]


def in_order(batches: Sequence[list[Observed]]) -> list[Observed]:
    """Return the tasks of all batches, sorted by number."""
    return sorted((task for batch in batches for task in batch), key=lambda task: task.number)
