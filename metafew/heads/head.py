"""What heads on frozen features share: one embedding, then pure functions of the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metafew.backbones.backbone import Backbone
from metafew.episode import Labelled
from metafew.precision import precise


def class_means(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """Return the mean feature of each class, ``(..., w, d)``.

    Args:
        features: ``(..., s, d)``.
        labels: ``(..., s)`` in ``0..way-1``; classes may have unequal numbers of rows.
        way: number of classes ``w``.
    """
    members = (labels.unsqueeze(-1) == torch.arange(way, device=labels.device)).to(features.dtype)
    return (members / members.sum(-2, keepdim=True)).mT @ features


class FeatureHead(nn.Module):
    """A head that fits a classifier on the features of the support set and leaves the backbone as it is.

    Subclasses implement :meth:`classify`. A head never receives the labels of queries.
    """

    adapts_backbone = False
    """Whether the backbone's weights change from task to task."""
    fixed_way: int | None = None
    """The only number of classes that the head can tell apart, if there is one."""

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

    def label(self, context: Tensor, labels: Tensor, targets: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` of queries with the features ``targets`` ``(t, q, d)``, in whatever precision.

        Args:
            context: features ``(t, s, d)`` of the support set.
            labels: its labels ``(t, s)``.
            targets: features of the queries.
            way: number of classes.
        """
        with torch.autocast(context.device.type, enabled=False):
            return self.classify(precise(context), labels, precise(targets), way)

    def forward(self, backbone: Backbone, support: Labelled, query: Tensor, way: int) -> Tensor:
        """Return logits ``(t, q, w)`` of the images ``query`` ``(t, q, c, h, w)``."""
        context, targets = backbone.embed(support.images, query)
        return self.label(context, support.labels, targets, way)
