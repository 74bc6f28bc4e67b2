"""The base classes of heads, and of heads that work on features."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.errors import UsageError
from metafew.meta_parameters import HasMetaParameters
from metafew.precision import precise


class Head(HasMetaParameters):
    """Turn a labelled support set and query images into logits. Subclasses implement :meth:`forward`.

    Training, evaluation and :func:`metafew.load` all call ``head(backbone, support, query, way)``. A head never
    receives the labels of queries. The rest of the package relies only on the attributes below.
    """

    needs_base_mean: bool = False
    """Whether evaluation uses :attr:`base_mean`; if so, runs compute it and store it in checkpoints."""
    base_mean: Tensor | None
    """The mean feature ``(d,)`` of training images (:mod:`metafew.evaluation.base_mean`); None until it is set."""
    adapts_backbone: bool = False
    """Whether the backbone's weights change from task to task."""
    transductive: bool = False
    """Whether, in evaluation, one query may change the logits of another. Results of such a head are marked."""
    requires_training: bool = False
    """Whether the head cannot evaluate a backbone without having been trained with it."""
    fixed_way: int | None = None
    """The required number of classes per task, or None if the head accepts any number."""
    learning_rates: tuple[float, ...] = ()
    """Learning rates of the inner loop; if there are several, evaluation selects one of them."""
    lock_step: bool = False
    """Whether ``objective=reptile`` can run the inner loop, with all tasks of a meta-batch in lock step."""
    evaluation_options: tuple[str, ...] = ()
    """Names of constructor arguments with no effect on training: a run may be resumed with other values."""
    memory_option: str | None = None
    """An option that reduces the memory of training and evaluation, such as ``inner=loop``."""
    exemptions: ClassVar[dict[str, str]] = {}
    """Contracts of tests/contracts that the head does not satisfy, each with the reason."""
    chosen: str | None = None
    """The one of :attr:`candidates` that evaluation uses; None, until one is selected, means the first."""

    def __init__(self):
        super().__init__()
        self.register_buffer("base_mean", None, persistent=False)

    @property
    def candidates(self) -> dict[str, dict[str, Any]]:
        """Settings to select from on validation tasks, by name: values of constructor arguments."""
        return {}

    @property
    def extra_readings(self) -> list[str]:
        """Names of the additional measurements in :meth:`readings`."""
        return []

    def penalty(self) -> Tensor | float:
        """Return a term that is added once per step to the loss of an objective that trains the head."""
        return 0.0

    def tasks_per_chunk(self, backbone: Backbone, support: Tensor, query: Tensor) -> int | None:
        """Return how many tasks with images ``(t, n, ...)`` are processed together; None for all of a meta-batch."""
        return None

    def forward(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return the logits of the queries.

        Args:
            backbone: the feature extractor, or a stand-in that embeds each image of the episode once.
            support: images ``(t, s, c, h, w)`` and labels ``(t, s)`` in ``0..way-1``; classes may have unequal numbers
                of rows.
            query: images ``(t, q, c, h, w)``.
            way: number of classes ``w``.

        Returns:
            ``(t, q, w)``.
        """
        raise NotImplementedError

    def readings(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> dict[str, Tensor]:
        """Return the logits under the name ``""``, and those of all :attr:`extra_readings`."""
        return {"": self(backbone, support, query, way)}


class FeatureHead(Head):
    """A head that fits a classifier to the features of the support set and does not change the backbone.

    Subclasses implement :meth:`classify`, or override :meth:`forward`. The features of an episode are computed once
    for all feature heads.
    """

    def classify(self, support: Tensor, labels: Tensor, query: Tensor, way: int) -> Tensor:
        """Return logits of the queries. Called with features in float32 or better, outside autocast.

        Args:
            support: features ``(t, s, d)``.
            labels: ``(t, s)`` in ``0..way-1``; classes may have unequal numbers of rows.
            query: features ``(t, q, d)``.
            way: number of classes ``w``.

        Returns:
            ``(t, q, w)``.
        """
        raise NotImplementedError

    def centred(self, features: Tensor) -> Tensor:
        """Return features ``(t, n, d)`` minus the mean feature of training images.

        Raises:
            UsageError: if that mean has not been set.
        """
        if self.base_mean is None:
            raise UsageError(
                f"expected the mean feature of training images for {type(self).__name__}, got none: set its base_mean "
                "to features.mean(0) of training images, or pass base=features to metafew.evaluate or metafew.classify"
            )
        return features - self.base_mean.to(features)

    def forward(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` of the images ``query`` ``(t, q, c, h, w)``."""
        context, targets = backbone.embed(support.images, query)
        with torch.autocast(context.device.type, enabled=False):
            return self.classify(precise(context), support.labels, precise(targets), way)


def class_means(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """Return the mean feature of each class, ``(..., w, d)``.

    Args:
        features: ``(..., s, d)``.
        labels: ``(..., s)`` in ``0..way-1``; classes may have unequal numbers of rows.
        way: number of classes ``w``.
    """
    members = (labels.unsqueeze(-1) == torch.arange(way, device=labels.device)).to(features.dtype)
    return weighted_means(features, members)


def weighted_means(features: Tensor, weights: Tensor) -> Tensor:
    """Return the means ``(..., w, d)`` of ``features`` ``(..., n, d)`` under each column of weights ``(..., n, w)``."""
    return (weights / weights.sum(-2, keepdim=True)).mT @ features


def negative_distances(query: Tensor, prototypes: Tensor) -> Tensor:
    """Return ``-||x - p_m||^2``, ``(t, q, w)``.

    Args:
        query: features ``x`` ``(t, q, d)``.
        prototypes: ``p_m`` ``(t, w, d)``.
    """
    # Distances are invariant to translation; centring avoids cancellation in the expansion.
    centre = prototypes.mean(1, keepdim=True)
    prototypes, query = prototypes - centre, query - centre
    squares = query.square().sum(-1, keepdim=True) + prototypes.square().sum(-1).unsqueeze(1)
    return torch.baddbmm(squares, query, prototypes.mT, beta=-1, alpha=2)
